# SPDX-License-Identifier: Apache-2.0
"""Statistics over the CRI, compared with the kernel's own files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import Cri, api
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

SECOND = 10**9


def files_of(cri: Cri, container_id: str) -> Path:
    """The cgroup directory of a container."""
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = json.loads(cri.runtime.ContainerStatus(request).info["info"])
    return Path("/sys/fs/cgroup") / str(info["cgroup"]).lstrip("/")


def stats(cri: Cri, container_id: str) -> api.ContainerStats:
    return cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=container_id)).stats


def pod_stats(cri: Cri, sandbox: str) -> api.LinuxPodSandboxStats:
    request = api.PodSandboxStatsRequest(pod_sandbox_id=sandbox)
    return cri.runtime.PodSandboxStats(request).stats.linux


def usage_ns(cgroup: Path) -> int:
    return int((cgroup / "cpu.stat").read_text().split()[1]) * 1000


def pressure_ns(cgroup: Path, kind: str, line: str) -> int | None:
    path = cgroup / f"{kind}.pressure"
    for found in path.read_text().splitlines() if path.exists() else ():
        if found.startswith(line):
            return int(found.rpartition("=")[2]) * 1000
    return None


def test_cpu_and_pressure_are_what_the_files_say(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "while :; do :; done")
    cgroup = files_of(pods.cri, container_id)
    until(lambda: usage_ns(cgroup) > SECOND // 10, "some CPU time")
    before = usage_ns(cgroup), pressure_ns(cgroup, "cpu", "some")
    now = time.time_ns()
    told = stats(pods.cri, container_id)
    after = usage_ns(cgroup), pressure_ns(cgroup, "cpu", "some")
    assert before[0] <= told.cpu.usage_core_nano_seconds.value <= after[0]
    assert now <= told.cpu.timestamp <= time.time_ns()
    assert not told.cpu.HasField("usage_nano_cores")  # there was one sample only
    if before[1] is None:
        assert not told.cpu.HasField("psi")
    else:
        assert after[1] is not None
        assert before[1] <= told.cpu.psi.Some.Total <= after[1]
    for kind, holder in (("memory", told.memory), ("io", told.io)):
        assert holder.HasField("psi") == (cgroup / f"{kind}.pressure").exists()


def test_a_busy_container_uses_about_a_core(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "while :; do :; done")
    first = stats(pods.cri, container_id).cpu

    def rate() -> int:
        return int(stats(pods.cri, container_id).cpu.usage_nano_cores.value)

    until(lambda: rate() > 0, "a second sample")
    told = stats(pods.cri, container_id).cpu
    used = told.usage_core_nano_seconds.value - first.usage_core_nano_seconds.value
    assert 0 < told.usage_nano_cores.value <= 1.2 * SECOND
    assert used > 0


def test_memory_and_swap_are_told_where_the_kernel_counts_them(pods: Pods) -> None:
    container_id = pods.running()
    cgroup = files_of(pods.cri, container_id)
    told = stats(pods.cri, container_id)
    counted = (cgroup / "memory.current").exists()
    for field in ("usage_bytes", "working_set_bytes", "rss_bytes", "page_faults"):
        assert told.memory.HasField(field) == counted, field
    assert told.HasField("swap") == (cgroup / "memory.swap.current").exists()
    assert told.memory.timestamp > 0
    if counted:
        limit = (cgroup / "memory.max").read_text().strip()
        assert told.memory.HasField("available_bytes") == (limit != "max")
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        near = int((cgroup / "memory.current").read_text()) - int(stat["inactive_file"])
        assert abs(told.memory.working_set_bytes.value - near) < 1 << 20


@pytest.fixture
def parent() -> Iterator[str]:
    """A pod cgroup as the kubelet makes them."""
    Path("/sys/fs/cgroup/kubepods").mkdir()
    Path("/sys/fs/cgroup/kubepods/pod1").mkdir()
    yield "/kubepods/pod1"
    for name in ("kubepods/pod1", "kubepods"):
        if (path := Path("/sys/fs/cgroup") / name).exists():
            os.rmdir(path)


def test_a_pods_cpu_and_processes_are_those_of_its_cgroup(pods: Pods, parent: str) -> None:
    sandbox = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", parent))
    pods.running("sh", "-c", "sleep 100000 & sleep 100000 & while :; do :; done", pod=sandbox)
    pods.running(pod=sandbox)
    cgroup = Path("/sys/fs/cgroup") / parent.lstrip("/")

    def processes() -> int:
        return sum(len(path.read_text().split()) for path in cgroup.rglob("cgroup.procs"))

    until(lambda: processes() == 4, "all processes")
    before = usage_ns(cgroup)
    told = pod_stats(pods.cri, sandbox[0])
    assert before <= told.cpu.usage_core_nano_seconds.value <= usage_ns(cgroup)
    assert told.process.process_count.value == 4
    assert told.io.HasField("psi") == (cgroup / "io.pressure").exists()
    pods.cri.remove_pod(sandbox[0])


def test_pods_without_a_cgroup_of_their_own_tell_the_sum_of_their_containers(
    pods: Pods,
) -> None:
    sandbox, other = pods.sandbox(), pods.sandbox()
    container_ids = [pods.running(pod=sandbox) for _ in range(2)]
    pods.running("sh", "-c", "while :; do :; done", pod=other)
    before = sum(usage_ns(files_of(pods.cri, container_id)) for container_id in container_ids)
    told = pod_stats(pods.cri, sandbox[0])
    after = sum(usage_ns(files_of(pods.cri, container_id)) for container_id in container_ids)
    assert before <= told.cpu.usage_core_nano_seconds.value <= after
    assert told.process.process_count.value == 2
    assert [one.attributes.id for one in told.containers] == container_ids


def test_pods_that_share_a_parent_do_not_count_one_another(pods: Pods, parent: str) -> None:
    sandboxes = [
        pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", parent)) for _ in range(2)
    ]
    for sandbox in sandboxes:
        pods.running(pod=sandbox)
        pods.running(pod=sandbox)
    assert [
        pod_stats(pods.cri, sandbox[0]).process.process_count.value for sandbox in sandboxes
    ] == [2, 2]
    pods.cri.remove_pod(sandboxes[0][0])
    assert pod_stats(pods.cri, sandboxes[1][0]).process.process_count.value == 2
    pods.cri.remove_pod(sandboxes[1][0])


def test_the_network_is_what_the_pods_own_namespace_counts(pods: Pods) -> None:
    sandbox = pods.sandbox()
    container_id = pods.running("ping", "-c", "3", "-i", "0.2", "10.88.0.1", pod=sandbox)
    until(lambda: pods.cri.status(container_id).finished_at > 0, "the pings")
    pods.running(pod=sandbox)
    told = pod_stats(pods.cri, sandbox[0]).network
    assert told.default_interface.name == "eth0"
    assert not told.interfaces  # all others, without the default one
    lines = pods.cri.exec(pods.running(pod=sandbox), "cat", "/proc/net/dev").stdout.decode()
    fields = next(line for line in lines.splitlines() if "eth0:" in line).split(":")[1].split()
    assert 0 < told.default_interface.rx_bytes.value <= int(fields[0])
    assert 0 < told.default_interface.tx_bytes.value <= int(fields[8])
    assert told.default_interface.HasField("rx_errors")


def test_lists_filter_by_every_key_and_leave_out_pods_that_are_over(pods: Pods) -> None:
    sandboxes = [pods.sandbox() for _ in range(2)]
    container_ids = [
        pods.running(pod=sandbox, change=lambda c, n=n: c.labels.update(number=str(n)))
        for n, sandbox in enumerate(sandboxes)
    ]

    def listed(**wanted: object) -> list[str]:
        request = api.ListContainerStatsRequest(filter=api.ContainerStatsFilter(**wanted))  # type: ignore[arg-type]
        return sorted(
            one.attributes.id for one in pods.cri.runtime.ListContainerStats(request).stats
        )

    def pods_listed(**wanted: object) -> list[str]:
        request = api.ListPodSandboxStatsRequest(filter=api.PodSandboxStatsFilter(**wanted))  # type: ignore[arg-type]
        return sorted(
            one.attributes.id for one in pods.cri.runtime.ListPodSandboxStats(request).stats
        )

    assert listed() == sorted(container_ids)
    assert listed(id=container_ids[0][:13]) == [container_ids[0]]
    assert listed(pod_sandbox_id=sandboxes[1][0]) == [container_ids[1]]
    assert listed(label_selector={"number": "0"}) == [container_ids[0]]
    assert listed(label_selector={"number": "0"}, pod_sandbox_id=sandboxes[1][0]) == []
    assert listed(id="x" * 5000) == []
    assert pods_listed() == sorted(sandbox[0] for sandbox in sandboxes)
    assert pods_listed(id=sandboxes[0][0][:20]) == [sandboxes[0][0]]
    pods.cri.stop_pod(sandboxes[0][0])
    assert pods_listed() == [sandboxes[1][0]]
    stopped = stats(pods.cri, container_ids[0])  # what it wrote counts on
    assert stopped.HasField("writable_layer")
    assert not stopped.cpu.HasField("usage_core_nano_seconds")
    with pytest.raises(grpc.RpcError) as raised:
        stats(pods.cri, "0" * 64)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
