# SPDX-License-Identifier: Apache-2.0
# vm: limit=5400 programs=zfs-modules.tar seconds=1800
"""The storage drivers that only this kernel has, devmapper and zfs, and an agent's pods on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.storage_node import service_on
from tests.support.storage_suite import passes
from tests.support.units import systemctl
from tests.support.vm_fixtures import VmPods, sleeper
from tests.support.waiting import until


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_the_conformance_suite(driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = passes(driver, ("conformance",), capsys, STORAGE_DRIVERS=driver)
    assert " skipped" not in output


@pytest.mark.timeout(2400)
def test_pools_that_fill_fail_and_vanish(capsys: pytest.CaptureFixture[str]) -> None:
    output = passes("test_pools", ("pools",), capsys)
    assert " skipped" not in output


def test_layers_with_fs_verity(capsys: pytest.CaptureFixture[str]) -> None:
    output = passes("fs_verity", ("erofs",), capsys, STORAGE_DRIVERS="erofs")
    assert output.count(" SKIPPED") == 0, "this kernel has fs-verity"


@pytest.fixture(params=["devmapper", "zfs"])
def on_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, VmPods]]:
    """The service with a root directory of its own, on that driver."""
    driver = request.param
    with service_on(driver, 256 << 20):
        yield driver, VmPods(Cri(), tmp_path, f"on-{driver}")
        fresh = served()
        for pod in fresh.pods():
            fresh.remove_pod(pod.id)
        fresh.close()


@pytest.mark.timeout(1800)
def test_pods_run_and_outlive_the_agent(on_driver: tuple[str, VmPods]) -> None:
    driver, pods = on_driver
    pods.cri.pull(BUSYBOX, timeout=300)
    container_id = pods.created(sleeper())
    written = pods.cri.exec(container_id, "sh", "-c", "echo kept > /kept && cat /kept", timeout=60)
    assert written.stdout == b"kept\n"
    systemctl("kill", "--signal=SIGKILL", "criagent")
    pods.cri.close()
    pods.cri = served()
    assert pods.cri.exec(container_id, "cat", "/kept", timeout=60).stdout == b"kept\n"
    conditions = pods.cri.runtime.Status(api.StatusRequest()).status.conditions
    state = {found.type: found.status for found in conditions}
    assert (state["RuntimeReady"], state["NetworkReady"]) == (True, True), conditions
    used = pods.cri.image.ImageFsInfo(api.ImageFsInfoRequest()).image_filesystems[0]
    print(f"figure: {driver}: image file system {used.used_bytes.value} bytes")


def served() -> Cri:
    """A client of the agent that has started again."""

    def answers() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(cri.runtime.Status(api.StatusRequest(), timeout=10).status.conditions)
        return False

    cri = Cri()
    until(answers, "the agent to answer", 600)
    return cri
