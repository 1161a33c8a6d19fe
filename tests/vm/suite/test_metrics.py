# SPDX-License-Identifier: Apache-2.0
# vm: seconds=130
"""Metrics and pod statistics where every controller is: what critest of newer cri-tools demands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api
from tests.support.vm_fixtures import CGROUPS, VmPods, cgroup_of, settled, sleeper

# The names whose values critest requires; those of IO only where the disk is counted.
REQUIRED = """
cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors
fs_inodes_free fs_inodes_total fs_limit_bytes fs_usage_bytes last_seen memory_cache memory_failcnt
memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss
memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total
network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total
network_transmit_packets_total oom_events_total processes sockets spec_cpu_period spec_cpu_shares
spec_memory_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads threads_max
""".split()
HANDLERS = ("crun", "runc")


def limited() -> api.ContainerConfig:
    wanted = sleeper()
    limits = wanted.linux.resources
    limits.cpu_period, limits.cpu_quota, limits.cpu_shares = 100_000, 20_000, 1024
    limits.memory_limit_in_bytes = limits.memory_swap_limit_in_bytes = 64 << 20
    return wanted


def listed(cri: Cri, sandbox: str) -> api.PodSandboxMetrics:
    answer = cri.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest(), timeout=60)
    return next(one for one in answer.pod_metrics if one.pod_sandbox_id == sandbox)


def values(metrics: Iterable[api.Metric]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for metric in metrics:
        found.setdefault(metric.name.removeprefix("container_"), []).append(metric.value.value)
    return found


def number(cgroup: Path, name: str, key: str = "") -> int:
    for line in (cgroup / name).read_text().splitlines():
        if not key or line.startswith(f"{key} "):
            return int(line.split()[-1])
    raise AssertionError(f"{name} has no {key}")


@pytest.mark.parametrize("handler", HANDLERS)
def test_every_required_metric_has_a_value(pods: VmPods, handler: str) -> None:
    sandbox = pods.of_handler(handler)
    container_id = pods.created(limited(), sandbox)
    write = "mkdir -p /var/lib/x && for i in $(seq 1 10); do echo hi >> /var/lib/x/$i; done; sync"
    pods.cri.exec(container_id, "sh", "-c", write, timeout=60)
    pod = listed(pods.cri, sandbox[0])
    (container,) = pod.container_metrics
    told = values([*pod.metrics, *container.metrics])
    assert [name for name in REQUIRED if name not in told] == []
    answer = pods.cri.runtime.ListMetricDescriptors(api.ListMetricDescriptorsRequest())
    keys = {one.name: len(one.label_keys) for one in answer.descriptors}
    for metric in (*pod.metrics, *container.metrics):
        assert len(metric.label_values) == keys[metric.name], metric.name


@pytest.mark.parametrize("handler", HANDLERS)
def test_values_are_those_of_the_files(pods: VmPods, handler: str) -> None:
    sandbox = pods.of_handler(handler)
    container_id = pods.created(limited(), sandbox)
    cgroup = cgroup_of(pods.cri, container_id)
    settled(cgroup)
    (container,) = listed(pods.cri, sandbox[0]).container_metrics
    told = values(container.metrics)
    assert told["spec_cpu_period"] == [100_000]
    assert told["spec_cpu_quota"] == [20_000]
    assert told["spec_cpu_shares"] == [1024]
    assert told["spec_memory_limit_bytes"] == [64 << 20]
    assert told["spec_memory_swap_limit_bytes"] == [0]
    assert told["memory_rss"] == [number(cgroup, "memory.stat", "anon")]
    assert told["memory_cache"] == [number(cgroup, "memory.stat", "file")]
    assert told["memory_kernel_usage"][0] > 0
    assert told["memory_max_usage_bytes"][0] >= told["memory_usage_bytes"][0]
    assert told["memory_failcnt"] == [number(cgroup, "memory.events", "max")]
    assert told["memory_swap"] == [number(cgroup, "memory.swap.current")]
    assert told["oom_events_total"] == [0]
    assert told["threads"] == [number(cgroup, "pids.current")]
    assert told["processes"] == [len((cgroup / "cgroup.procs").read_text().split())]
    assert told["hugetlb_usage_bytes"][0] == 0


def test_a_pod_is_its_slice(pods: VmPods) -> None:
    sandbox = pods.sandbox()
    for name in ("one", "two"):
        pods.created(sleeper(name), sandbox)
    cgroup = CGROUPS / sandbox[1].linux.cgroup_parent.lstrip("/")
    settled(cgroup)
    told = values(listed(pods.cri, sandbox[0]).metrics)
    assert told["memory_rss"] == [number(cgroup, "memory.stat", "anon")]
    assert told["threads"] == [number(cgroup, "pids.current")]
    request = api.PodSandboxStatsRequest(pod_sandbox_id=sandbox[0])
    stats = pods.cri.runtime.PodSandboxStats(request, timeout=30).stats.linux
    assert stats.memory.rss_bytes.value == number(cgroup, "memory.stat", "anon")
    assert stats.memory.usage_bytes.value >= stats.memory.working_set_bytes.value > 0
    assert stats.process.process_count.value >= 2
    assert (
        stats.cpu.usage_core_nano_seconds.value <= number(cgroup, "cpu.stat", "usage_usec") * 1000
    )
    assert stats.HasField("io")
