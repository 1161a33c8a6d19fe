# SPDX-License-Identifier: Apache-2.0
# vm: seconds=370
"""Limits, read back from the kernel; changes in place; who is said to be killed for memory."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import api
from tests.support.vm_fixtures import VmPods, cgroup_of, scope_of, settled, sleeper
from tests.support.waiting import until

HANDLERS = ("crun", "runc")
_EATER = "dd if=/dev/zero of=/dev/null bs=64M count=1"


def _read(cgroup: Path, name: str) -> str:
    return (cgroup / name).read_text().strip()


def _swap(*cgroups: Path) -> str:
    """The limit of swap in force: the smallest of the container's cgroups."""
    limits = [_read(cgroup, "memory.swap.max") for cgroup in cgroups]
    return min(limits, key=lambda text: float("inf") if text == "max" else int(text))


def _holder(megabytes: int) -> api.ContainerConfig:
    """A container whose process holds that much memory, says "held" and sleeps."""
    program = 'BEGIN { x = sprintf("%%%dd", 1); print "held"; fflush(); system("sleep 100000") }'
    return sleeper("holder", "awk", program % (megabytes << 20))


def _limited() -> api.ContainerConfig:
    wanted = sleeper()
    limits = wanted.linux.resources
    limits.cpu_shares = 512
    limits.cpu_quota = 50_000
    limits.cpu_period = 100_000
    limits.cpuset_cpus = "0"
    limits.cpuset_mems = "0"
    limits.memory_limit_in_bytes = 128 << 20
    limits.hugepage_limits.add(page_size="2MB", limit=4 << 20)
    limits.unified["pids.max"] = "77"
    limits.unified["memory.high"] = str(96 << 20)
    return wanted


@pytest.mark.parametrize("handler", HANDLERS)
def test_limits_are_the_kernels(pods: VmPods, handler: str) -> None:
    container_id = pods.created(_limited(), pods.of_handler(handler))
    scope = scope_of(pods.cri, container_id)
    assert _read(scope, "cpu.max") == "50000 100000"
    assert 1 < int(_read(scope, "cpu.weight")) < 100  # less than the default 1024 shares
    assert _read(scope, "cpuset.cpus") == "0"
    assert _read(scope, "cpuset.mems") == "0"
    assert _read(scope, "memory.max") == str(128 << 20)
    # What systemd has no property for, crun sets on the container's cgroup in the scope. No swap
    # unless it is asked for.
    inner = cgroup_of(pods.cri, container_id)
    assert _read(inner, "memory.swap.max") == "0"
    assert _read(inner, "hugetlb.2MB.max") == str(4 << 20)
    assert _read(scope, "memory.high") == str(96 << 20)
    assert _read(scope, "pids.max") == "77"


@pytest.mark.parametrize("handler", HANDLERS)
def test_limits_change_in_place(pods: VmPods, handler: str) -> None:
    container_id = pods.created(_limited(), pods.of_handler(handler))
    scope, started = scope_of(pods.cri, container_id), pods.cri.status(container_id).started_at
    changed = api.LinuxContainerResources(
        cpu_shares=2048,
        cpu_quota=150_000,
        cpu_period=100_000,
        memory_limit_in_bytes=256 << 20,
        unified={"pids.max": "99"},
    )
    request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=changed)
    pods.cri.runtime.UpdateContainerResources(request, timeout=60)
    assert _read(scope, "cpu.max") == "150000 100000"
    assert int(_read(scope, "cpu.weight")) > 50
    assert _read(scope, "memory.max") == str(256 << 20)
    assert _read(scope, "pids.max") == "99"
    status = pods.cri.status(container_id)
    assert status.started_at == started
    assert status.resources.linux.memory_limit_in_bytes == 256 << 20


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("swap", [64 << 20, -1])
def test_more_memory_leaves_swap_as_it_is(pods: VmPods, handler: str, swap: int) -> None:
    wanted = sleeper()
    limits = wanted.linux.resources
    limits.memory_limit_in_bytes = 128 << 20
    limits.memory_swap_limit_in_bytes = -1 if swap < 0 else (128 << 20) + swap
    container_id = pods.created(wanted, pods.of_handler(handler))
    scope, inner = scope_of(pods.cri, container_id), cgroup_of(pods.cri, container_id)
    expected = "max" if swap < 0 else str(swap)
    assert _swap(scope, inner) == expected
    changed = api.LinuxContainerResources(memory_limit_in_bytes=256 << 20)
    request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=changed)
    pods.cri.runtime.UpdateContainerResources(request, timeout=60)
    assert _read(scope, "memory.max") == str(256 << 20)
    assert _swap(scope, inner) == expected
    told = pods.cri.status(container_id).resources.linux
    assert told.memory_limit_in_bytes == 256 << 20
    assert told.memory_swap_limit_in_bytes == (-1 if swap < 0 else (256 << 20) + swap)


@pytest.mark.parametrize("handler", HANDLERS)
def test_cpus_change_in_place(pods: VmPods, handler: str) -> None:
    container_id = pods.created(sleeper(), pods.of_handler(handler))
    scope = scope_of(pods.cri, container_id)
    assert _read(scope, "cpuset.cpus") == ""
    changed = api.LinuxContainerResources(cpuset_cpus="0", cpuset_mems="0")
    request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=changed)
    pods.cri.runtime.UpdateContainerResources(request, timeout=60)
    assert (_read(scope, "cpuset.cpus"), _read(scope, "cpuset.mems")) == ("0", "0")
    told = pods.cri.status(container_id).resources.linux
    assert (told.cpuset_cpus, told.cpuset_mems) == ("0", "0")


def test_a_shrink_below_what_is_used_is_told(pods: VmPods) -> None:
    wanted = _holder(80)
    wanted.linux.resources.memory_limit_in_bytes = 200 << 20
    container_id = pods.created(wanted)
    until(lambda: "held" in pods.log(container_id), "the memory", 120)
    changed = api.LinuxContainerResources(memory_limit_in_bytes=30 << 20)
    request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=changed)
    try:
        pods.cri.runtime.UpdateContainerResources(request, timeout=60)
    except grpc.RpcError as error:
        print(error.details())  # it died while the runtime was changing its limits
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the kill", 60)
    assert pods.cri.status(container_id).reason == "OOMKilled"


def test_a_kill_is_told_of_the_container_that_had_it(pods: VmPods) -> None:
    sandbox = pods.sandbox()
    eater = sleeper("eater", "sh", "-c", f"sleep 1; {_EATER}; exit 7")
    eater.linux.resources.memory_limit_in_bytes = 24 << 20
    container_ids = [pods.created(sleeper("other", "sh", "-c", "sleep 2; exit 5"), sandbox)]
    container_ids += [
        pods.created(eater, sandbox),
        pods.created(sleeper("last", "sh", "-c", "exit 1"), sandbox),
    ]
    for container_id in container_ids:
        until(
            lambda one=container_id: pods.cri.status(one).state == api.CONTAINER_EXITED,
            "the exit",
            120,
        )
    assert [pods.cri.status(container_id).reason for container_id in container_ids] == [
        "Error",
        "OOMKilled",
        "Error",
    ]


@pytest.mark.parametrize("handler", HANDLERS)
def test_containers_of_a_pod_that_are_killed_together_are_all_told(
    pods: VmPods, handler: str
) -> None:
    sandbox = pods.of_handler(handler)
    at = int(time.time()) + 60
    waiting = f"until [ $(date +%s) -ge {at} ]; do sleep 0.1; done"
    container_ids = []
    for number in range(6):
        wanted = sleeper(f"eater{number}", "sh", "-c", f"{waiting}; exec {_EATER}")
        wanted.linux.resources.memory_limit_in_bytes = 24 << 20
        container_ids.append(pods.created(wanted, sandbox))
    for container_id in container_ids:
        until(
            lambda one=container_id: pods.cri.status(one).state == api.CONTAINER_EXITED,
            "the exit",
            180,
        )
    ends = [
        (pods.cri.status(container_id).exit_code, pods.cri.status(container_id).reason)
        for container_id in container_ids
    ]
    assert ends == [(137, "OOMKilled")] * 6


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_process_that_was_killed_for_memory_is_told(pods: VmPods, handler: str) -> None:
    wanted = sleeper("eater", *_EATER.split())
    wanted.linux.resources.memory_limit_in_bytes = 24 << 20
    container_id = pods.created(wanted, pods.of_handler(handler))
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit", 120)
    status = pods.cri.status(container_id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_killed_child_is_told_when_the_main_process_ends_at_once(
    pods: VmPods, handler: str
) -> None:
    sandbox = pods.of_handler(handler)
    for number in range(5):
        wanted = sleeper(f"parent{number}", "sh", "-c", f"{_EATER}; exit 7")
        wanted.linux.resources.memory_limit_in_bytes = 24 << 20
        container_id = pods.created(wanted, sandbox)
        until(
            lambda one=container_id: pods.cri.status(one).state == api.CONTAINER_EXITED,
            "the exit",
            120,
        )
        status = pods.cri.status(container_id)
        assert (status.exit_code, status.reason) == (7, "OOMKilled")


@pytest.mark.parametrize(
    ("command", "code"), [("kill -KILL $$", 137), ("exit 137", 137), ("exit 1", 1)]
)
def test_other_ends_are_no_kills_for_memory(pods: VmPods, command: str, code: int) -> None:
    wanted = sleeper("other", "sh", "-c", f"sh -c '{command}'; exit $?")
    wanted.linux.resources.memory_limit_in_bytes = 64 << 20
    container_id = pods.created(wanted)
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit", 60)
    status = pods.cri.status(container_id)
    assert (status.exit_code, status.reason) == (code, "Error")


def test_statistics_are_the_cgroups_files(pods: VmPods) -> None:
    wanted = _holder(40)
    wanted.linux.resources.memory_limit_in_bytes = 200 << 20
    container_id = pods.created(wanted)
    until(lambda: "held" in pods.log(container_id), "the memory", 120)
    settled(cgroup_of(pods.cri, container_id))
    request = api.ContainerStatsRequest(container_id=container_id)
    stats = pods.cri.runtime.ContainerStats(request, timeout=30).stats
    cgroup = cgroup_of(pods.cri, container_id)
    memory = dict(line.split() for line in _read(cgroup, "memory.stat").splitlines())
    cpu = dict(line.split() for line in _read(cgroup, "cpu.stat").splitlines())
    # The process sleeps: nothing moves between the two looks.
    assert stats.memory.rss_bytes.value == int(memory["anon"]) > 40 << 20
    assert stats.memory.usage_bytes.value == int(_read(cgroup, "memory.current"))
    expected = stats.memory.usage_bytes.value - int(memory["inactive_file"])
    assert stats.memory.working_set_bytes.value == expected
    assert stats.memory.available_bytes.value == (200 << 20) - expected
    assert stats.cpu.usage_core_nano_seconds.value == int(cpu["usage_usec"]) * 1000
    assert stats.memory.page_faults.value == int(memory["pgfault"])
    assert stats.memory.psi.Some.Total >= 0
    again = pods.cri.runtime.ContainerStats(request, timeout=30).stats
    assert again.cpu.usage_nano_cores.value < 10**9


def test_statistics_of_the_pod_are_its_slices(pods: VmPods) -> None:
    sandbox = pods.sandbox()
    pods.created(sleeper(), sandbox)
    cgroup = Path("/sys/fs/cgroup", sandbox[1].linux.cgroup_parent.lstrip("/"))
    settled(cgroup)
    request = api.PodSandboxStatsRequest(pod_sandbox_id=sandbox[0])
    stats = pods.cri.runtime.PodSandboxStats(request, timeout=30).stats.linux
    assert stats.memory.usage_bytes.value == int(_read(cgroup, "memory.current"))
    assert stats.process.process_count.value == int(_read(cgroup, "pids.current")) == 1
