# SPDX-License-Identifier: Apache-2.0
# vm: limit=5400 programs=zfs-modules.tar seconds=1800
"""The storage drivers that only this kernel has, devmapper and zfs, and an agent's pods on them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.storage import pools
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.units import systemctl
from tests.support.vm_fixtures import VmPods, sleeper
from tests.support.waiting import until

CONFIG = Path("/etc/criagent/config.toml")
ROOT = Path("/var/lib/criagent-driver")
SUITE = ("tests/storage/test_conformance.py", "tests/storage/test_pools.py")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_the_conformance_suite(driver: str) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "timeout=600", *SUITE, "-k", driver],
        env={**os.environ, "STORAGE_DRIVERS": driver},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    assert " skipped" not in done.stdout
    passed = re.findall(r"(\d+) passed", done.stdout)
    print(f"figure: {driver}: {passed[-1]} cases passed")


@pytest.fixture(params=["devmapper", "zfs"])
def on_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, VmPods]]:
    """The service with a root directory of its own, on that driver."""
    driver = request.param
    before = CONFIG.read_text() if CONFIG.exists() else None
    ROOT.mkdir()
    section = f'[storage]\nroot = "{ROOT}"\ndriver = "{driver}"\n[storage.{driver}]\n'
    if driver == "devmapper":
        section += f"loop_size_bytes = {256 << 20}\nbase_size_bytes = {1 << 30}\n"
    else:
        assert pools.no_zfs() == ""
        pools.run("mount", "-t", "tmpfs", "storage", ROOT)
        pools.make_zpool(ROOT, 512 << 20)
        section += f'dataset = "{pools.ZPOOL}/criagent"\n'
    systemctl("stop", "criagent")
    CONFIG.write_text(section)
    systemctl("start", "criagent")
    cri = Cri()
    yield driver, VmPods(cri, tmp_path, f"on-{driver}")
    for pod in cri.pods():
        cri.remove_pod(pod.id)
    cri.close()
    systemctl("stop", "criagent")
    if driver == "devmapper":
        pools.remove_thin_pool(ROOT)
    else:
        pools.remove_zpool(ROOT)
    subprocess.run(["umount", "-R", ROOT], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", ROOT], check=True)
    if before is None:
        CONFIG.unlink()
    else:
        CONFIG.write_text(before)
    systemctl("start", "criagent")


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
    assert condition(pods.cri) == (True, "")
    if driver == "devmapper":
        fill = "dd if=/dev/zero of=/big bs=1M count=235 && sync"
        assert pods.cri.exec(container_id, "sh", "-c", fill, timeout=300).exit_code == 0
        assert condition(pods.cri) == (False, "StorageFailing")
        empty = "rm /big && sync"
        assert pods.cri.exec(container_id, "sh", "-c", empty, timeout=60).exit_code == 0
        until(lambda: condition(pods.cri) == (True, ""), "the discard of what was deleted", 120)
    used = pods.cri.image.ImageFsInfo(api.ImageFsInfoRequest()).image_filesystems[0]
    print(f"figure: {driver}: image file system {used.used_bytes.value} bytes")


def condition(cri: Cri) -> tuple[bool, str]:
    """Whether RuntimeReady is true, and the reason."""
    conditions = cri.runtime.Status(api.StatusRequest(), timeout=60).status.conditions
    (ready,) = [one for one in conditions if one.type == "RuntimeReady"]
    return ready.status, ready.reason


def served() -> Cri:
    """A client of the agent that has started again."""

    def answers() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(cri.runtime.Status(api.StatusRequest(), timeout=10).status.conditions)
        return False

    cri = Cri()
    until(answers, "the agent to answer", 120)
    return cri
