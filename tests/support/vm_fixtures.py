# SPDX-License-Identifier: Apache-2.0
"""Tests inside the VM, against criagent as its systemd service: `make vm-test`.

They see systemd, every controller of cgroup v2 and AppArmor. Each leaves the node as it found it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container
from tests.support.node_state import differences, settled_state
from tests.support.pods import Pods  # of tests/node
from tests.support.units import failed_units, main_pid, pod_slices, systemctl
from tests.support.waiting import until

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    """The images that tests share are there before the first state is taken."""
    cri = Cri()
    cri.pull(BUSYBOX, timeout=300)
    cri.pull(DEBIAN, timeout=300)
    cri.close()


@pytest.fixture
def cri() -> Iterator[Cri]:
    """A client of the service."""
    client = Cri()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def nothing_leaks(cri: Cri) -> Iterator[None]:
    """Compare the node before and after; units of containers that failed are a leak, too."""
    before = {**settled_state(cri), "failed": failed_units()}
    yield
    if not main_pid("criagent"):
        systemctl("start", "criagent")
    with_fresh = Cri()
    for pod in with_fresh.pods():
        with_fresh.remove_pod(pod.id)
    for name in pod_slices():
        systemctl("stop", name)  # as the kubelet does
    after = {**settled_state(with_fresh), "failed": failed_units()}
    with_fresh.close()
    left = differences(before, after)
    assert not left, left


def settled(cgroup: Path) -> None:
    """Return when nothing in the cgroup has moved for a second."""
    seen, since = "", time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        names = ("cpu.stat", "memory.stat", "memory.current", "pids.current")
        now = "".join((cgroup / name).read_text() for name in names)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > 1

    until(still, f"a second in which nothing moves in {cgroup.name}", 60)


class VmPods(Pods):
    """Pods in slices as the kubelet names them."""

    def config(self, **fields: Any) -> api.PodSandboxConfig:
        config = super().config(**fields)
        slice_name = f"kubepods-burstable-pod{config.metadata.uid.replace('-', '_')}.slice"
        config.linux.cgroup_parent = f"/kubepods.slice/kubepods-burstable.slice/{slice_name}"
        return config

    def of_handler(self, handler: str) -> tuple[str, api.PodSandboxConfig]:
        """A sandbox of that runtime handler."""
        config = self.config()
        return self.cri.run(config, handler=handler), config

    def created(
        self, wanted: api.ContainerConfig, pod: tuple[str, api.PodSandboxConfig] | None = None
    ) -> str:
        """The id of a started container of `wanted`."""
        sandbox, config = pod or self.sandbox()
        container_id = self.cri.create(sandbox, wanted, config, timeout=120)
        self.cri.start(container_id)
        return container_id


def cgroup_of(cri: Cri, container_id: str) -> Path:
    """The cgroup directory of a running container's init."""
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = cri.runtime.ContainerStatus(request, timeout=30).info["info"]
    pid = int(json.loads(info)["pid"])
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip()[len("0::/") :]


def scope_of(cri: Cri, container_id: str) -> Path:
    """Its scope's directory: crun's init lives in a child of it, runc's in itself."""
    cgroup = cgroup_of(cri, container_id)
    return cgroup if cgroup.suffix == ".scope" else cgroup.parent


@pytest.fixture
def pods(cri: Cri, tmp_path: Path, request: pytest.FixtureRequest) -> VmPods:
    """A maker of pods for this test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name[:40])
    return VmPods(cri, tmp_path, name.rstrip("-"))


def sleeper(name: str = "sleeper", *command: str) -> api.ContainerConfig:
    """A container's configuration; sleeps unless `command` says otherwise."""
    return container(name, command or ("sleep", "100000"))
