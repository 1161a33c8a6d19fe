# SPDX-License-Identifier: Apache-2.0
# vm: limit=3600 seconds=600 programs=runsc
"""gVisor under the systemd driver: scopes, limits that runsc sets, and the end for memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api
from tests.support.units import container_units, restart_agent, show
from tests.support.vm_fixtures import VmPods, cgroup_of, scope_of, sleeper
from tests.support.waiting import until

HANDLER, PROGRAM = "gvisor", "/opt/tools/bin/runsc"
DROP_IN = Path("/etc/criagent/config.d/gvisor.toml")
STATE = Path("/run/criagent/runtime") / HANDLER


@pytest.fixture(autouse=True)
def gvisor(pods: VmPods) -> Iterator[VmPods]:
    """The service with the handler."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(f'[runtime.handlers.{HANDLER}]\npath = "{PROGRAM}"\ntype = "runsc"\n')
    restarted(pods)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    DROP_IN.unlink()
    restarted(pods)
    subprocess.run(["umount", STATE / "null-netns"], check=False, capture_output=True)
    shutil.rmtree(STATE)


def restarted(pods: VmPods) -> None:
    pods.cri.close()
    restart_agent()
    pods.cri = Cri()


def read(cgroup: Path, name: str) -> str:
    return (cgroup / name).read_text().strip()


def test_a_container_is_a_scope_with_its_limits(gvisor: VmPods) -> None:
    """Limits are the kernel's at its creation and after an update; a restart finds it again."""
    wanted = sleeper()
    limits = wanted.linux.resources
    limits.cpu_shares, limits.cpu_quota, limits.cpu_period = 512, 50_000, 100_000
    limits.memory_limit_in_bytes = 256 << 20
    sandbox = gvisor.of_handler(HANDLER)
    container_id = gvisor.created(wanted, sandbox)
    cri = gvisor.cri
    scope = scope_of(cri, container_id)
    assert scope.name == f"cri-{container_id}.scope"
    assert scope.parent.name == Path(sandbox[1].linux.cgroup_parent).name
    assert show(scope.name, "ActiveState") == "active"
    assert read(scope, "cpu.max") == "50000 100000"
    assert 1 < int(read(scope, "cpu.weight")) < 100  # less than the default 1024 shares
    assert read(scope, "memory.max") == str(256 << 20)
    assert len(read(cgroup_of(cri, container_id), "cgroup.procs").split()) > 1  # kernel and files
    changed = api.LinuxContainerResources(
        cpu_shares=2048, cpu_quota=80_000, cpu_period=100_000, memory_limit_in_bytes=384 << 20
    )
    request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=changed)
    cri.runtime.UpdateContainerResources(request, timeout=120)
    assert read(scope, "memory.max") == str(384 << 20)
    assert read(scope, "cpu.max") == "80000 100000"
    stats = cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=container_id)).stats
    assert stats.memory.working_set_bytes.value > 1 << 20
    assert stats.cpu.usage_core_nano_seconds.value > 0
    restarted(gvisor)
    assert gvisor.cri.status(container_id).state == api.CONTAINER_RUNNING
    assert gvisor.cri.exec(container_id, "echo", "alive", timeout=120).stdout == b"alive\n"
    gvisor.cri.stop(container_id)
    gvisor.cri.remove(container_id)
    assert container_units() == []
    assert not scope.exists()


def test_a_container_beyond_its_memory_is_killed_as_a_whole(gvisor: VmPods) -> None:
    wanted = sleeper("eater", "dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1")
    wanted.linux.resources.memory_limit_in_bytes = 128 << 20
    container_id = gvisor.created(wanted, gvisor.of_handler(HANDLER))
    cri = gvisor.cri
    until(lambda: cri.status(container_id).state == api.CONTAINER_EXITED, "the end", 300)
    status = cri.status(container_id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    until(lambda: container_units() == [], "the end of the scope", 60)
