"""Statistics over the CRI, compared with the kernel's own files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import Pods
from cri_client import Cri, api
from waiting import until

pytestmark = pytest.mark.root

SECOND = 10**9


def files_of(cri: Cri, row: str) -> Path:
    """The cgroup directory of a container."""
    request = api.ContainerStatusRequest(container_id=row, verbose=True)
    info = json.loads(cri.runtime.ContainerStatus(request).info["info"])
    return Path("/sys/fs/cgroup") / str(info["cgroup"]).lstrip("/")


def stats(cri: Cri, row: str) -> api.ContainerStats:
    return cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=row)).stats


def pod_stats(cri: Cri, box: str) -> api.LinuxPodSandboxStats:
    request = api.PodSandboxStatsRequest(pod_sandbox_id=box)
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
    row = pods.running("sh", "-c", "while :; do :; done")
    cgroup = files_of(pods.cri, row)
    until(lambda: usage_ns(cgroup) > SECOND // 10, "some CPU time")
    before = usage_ns(cgroup), pressure_ns(cgroup, "cpu", "some")
    now = time.time_ns()
    told = stats(pods.cri, row)
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
    row = pods.running("sh", "-c", "while :; do :; done")
    first = stats(pods.cri, row).cpu

    def rate() -> int:
        return int(stats(pods.cri, row).cpu.usage_nano_cores.value)

    until(lambda: rate() > 0, "a second sample")
    told = stats(pods.cri, row).cpu
    used = told.usage_core_nano_seconds.value - first.usage_core_nano_seconds.value
    assert 0 < told.usage_nano_cores.value <= 1.2 * SECOND
    assert used > 0


def test_memory_and_swap_are_told_where_the_kernel_counts_them(pods: Pods) -> None:
    row = pods.running()
    cgroup = files_of(pods.cri, row)
    told = stats(pods.cri, row)
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
    box = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", parent))
    pods.running("sh", "-c", "sleep 100000 & sleep 100000 & while :; do :; done", box=box)
    pods.running(box=box)
    cgroup = Path("/sys/fs/cgroup") / parent.lstrip("/")

    def processes() -> int:
        return sum(len(path.read_text().split()) for path in cgroup.rglob("cgroup.procs"))

    until(lambda: processes() == 4, "all processes")
    before = usage_ns(cgroup)
    told = pod_stats(pods.cri, box[0])
    assert before <= told.cpu.usage_core_nano_seconds.value <= usage_ns(cgroup)
    assert told.process.process_count.value == 4
    assert told.io.HasField("psi") == (cgroup / "io.pressure").exists()
    pods.cri.remove_pod(box[0])


def test_pods_without_a_cgroup_of_their_own_tell_the_sum_of_their_containers(
    pods: Pods,
) -> None:
    box, other = pods.sandbox(), pods.sandbox()
    rows = [pods.running(box=box) for _ in range(2)]
    pods.running("sh", "-c", "while :; do :; done", box=other)
    before = sum(usage_ns(files_of(pods.cri, row)) for row in rows)
    told = pod_stats(pods.cri, box[0])
    after = sum(usage_ns(files_of(pods.cri, row)) for row in rows)
    assert before <= told.cpu.usage_core_nano_seconds.value <= after
    assert told.process.process_count.value == 2
    assert [one.attributes.id for one in told.containers] == rows


def test_pods_that_share_a_parent_do_not_count_one_another(pods: Pods, parent: str) -> None:
    boxes = [pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", parent)) for _ in range(2)]
    for box in boxes:
        pods.running(box=box)
        pods.running(box=box)
    assert [pod_stats(pods.cri, box[0]).process.process_count.value for box in boxes] == [2, 2]
    pods.cri.remove_pod(boxes[0][0])
    assert pod_stats(pods.cri, boxes[1][0]).process.process_count.value == 2
    pods.cri.remove_pod(boxes[1][0])


def test_the_network_is_what_the_pods_own_namespace_counts(pods: Pods) -> None:
    box = pods.sandbox()
    row = pods.running("ping", "-c", "3", "-i", "0.2", "10.88.0.1", box=box)
    until(lambda: pods.cri.status(row).finished_at > 0, "the pings")
    pods.running(box=box)
    told = pod_stats(pods.cri, box[0]).network
    assert told.default_interface.name == "eth0"
    assert not told.interfaces  # all others, without the default one
    lines = pods.cri.exec(pods.running(box=box), "cat", "/proc/net/dev").stdout.decode()
    fields = next(line for line in lines.splitlines() if "eth0:" in line).split(":")[1].split()
    assert 0 < told.default_interface.rx_bytes.value <= int(fields[0])
    assert 0 < told.default_interface.tx_bytes.value <= int(fields[8])
    assert told.default_interface.HasField("rx_errors")


def test_lists_filter_by_every_key_and_leave_out_pods_that_are_over(pods: Pods) -> None:
    boxes = [pods.sandbox() for _ in range(2)]
    rows = [
        pods.running(box=box, change=lambda c, n=n: c.labels.update(number=str(n)))
        for n, box in enumerate(boxes)
    ]

    def listed(**wanted: object) -> list[str]:
        request = api.ListContainerStatsRequest(filter=api.ContainerStatsFilter(**wanted))
        return sorted(
            one.attributes.id for one in pods.cri.runtime.ListContainerStats(request).stats
        )

    def pods_listed(**wanted: object) -> list[str]:
        request = api.ListPodSandboxStatsRequest(filter=api.PodSandboxStatsFilter(**wanted))
        return sorted(
            one.attributes.id for one in pods.cri.runtime.ListPodSandboxStats(request).stats
        )

    assert listed() == sorted(rows)
    assert listed(id=rows[0][:13]) == [rows[0]]
    assert listed(pod_sandbox_id=boxes[1][0]) == [rows[1]]
    assert listed(label_selector={"number": "0"}) == [rows[0]]
    assert listed(label_selector={"number": "0"}, pod_sandbox_id=boxes[1][0]) == []
    assert listed(id="x" * 5000) == []
    assert pods_listed() == sorted(box[0] for box in boxes)
    assert pods_listed(id=boxes[0][0][:20]) == [boxes[0][0]]
    pods.cri.stop_pod(boxes[0][0])
    assert pods_listed() == [boxes[1][0]]
    stopped = stats(pods.cri, rows[0])  # what it wrote counts on
    assert stopped.HasField("writable_layer")
    assert not stopped.cpu.HasField("usage_core_nano_seconds")
    with pytest.raises(grpc.RpcError) as raised:
        stats(pods.cri, "0" * 64)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
