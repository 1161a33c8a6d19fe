# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agent over HTTP, and of pods over the CRI, as others read them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.runtime.stats.metric_values import Devices
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.metrics_page import scrape, value
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_the_page_lists_every_name_with_type_and_labels(pods: Pods) -> None:
    pods.running()
    listed = {
        name: (kind, {label.strip() for label in labels.split(",") if label.strip()})
        for name, kind, labels in re.findall(
            r"^\| (criagent_\w+) \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE
        )
    }
    told = scrape()
    assert {name: family.type for name, family in told.items()} == {
        name: kind for name, (kind, _) in listed.items()
    }
    for name, family in told.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= listed[name][1], name


def test_gauges_and_counters_follow_a_life(pods: Pods) -> None:
    started = value("criagent_container_starts_total")
    failed = value("criagent_container_exits_total", {"reason": "Error"})
    container_id = pods.running("sh", "-c", "exit 3")
    until(lambda: pods.cri.status(container_id).finished_at > 0, "the exit")
    assert value("criagent_container_starts_total") == started + 1
    assert value("criagent_container_exits_total", {"reason": "Error"}) == failed + 1
    assert value("criagent_containers", {"state": "exited"}) == 1
    assert value("criagent_sandboxes", {"state": "ready"}) == 1
    pods.cri.remove_pod(pods.cri.pods()[0].id)
    assert value("criagent_sandboxes", {"state": "ready"}) == 0
    assert value("criagent_condition", {"type": "NetworkReady"}) == 1
    assert value("criagent_ready") == 1


def test_a_restart_counts_no_exit_again(pods: Pods) -> None:
    container_id = pods.running("true")
    until(lambda: pods.cri.status(container_id).finished_at > 0, "the exit")
    agent.stop()
    pods.cri = agent.start()
    assert value("criagent_container_exits_total", {"reason": "Completed"}) == 0
    assert value("criagent_containers", {"state": "exited"}) == 1
    assert value("criagent_recovery_seconds") > 0


# Metrics of pods over the CRI. Names here are without "container_".

CGROUP_FILES = {
    "cpu.max": "spec_cpu_period",
    "cpu.weight": "spec_cpu_shares",
    "memory.current": "memory_usage_bytes memory_working_set_bytes memory_cache memory_rss "
    "memory_kernel_usage memory_mapped_file memory_failures_total",
    "memory.events": "memory_failcnt oom_events_total",
    "memory.max": "spec_memory_limit_bytes",
    "memory.min": "spec_memory_reservation_limit_bytes",
    "memory.peak": "memory_max_usage_bytes",
    "memory.swap.current": "memory_swap",
    "memory.swap.max": "spec_memory_swap_limit_bytes",
    "pids.current": "threads",
    "pids.max": "threads_max",
    "cpu.pressure": "pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total",
    "memory.pressure": "pressure_memory_stalled_seconds_total "
    "pressure_memory_waiting_seconds_total",
    "io.pressure": "pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total",
    "hugetlb.2MB.current": "hugetlb_usage_bytes",
}
ALWAYS = """
cpu_usage_seconds_total cpu_user_seconds_total cpu_system_seconds_total file_descriptors
fs_inodes_free fs_inodes_total fs_limit_bytes fs_usage_bytes last_seen processes sockets
start_time_seconds ulimits_soft
"""
QUOTA = """
cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
spec_cpu_quota
"""
IO = """
blkio_device_usage_total fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total
"""
NETWORK = """
network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total
"""

Series = dict[str, list[tuple[dict[str, str], api.Metric]]]


def label_keys(cri: Cri) -> dict[str, list[str]]:
    answer = cri.runtime.ListMetricDescriptors(api.ListMetricDescriptorsRequest())
    return {one.name: list(one.label_keys) for one in answer.descriptors}


def listed(cri: Cri) -> dict[str, api.PodSandboxMetrics]:
    answer = cri.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest())
    return {one.pod_sandbox_id: one for one in answer.pod_metrics}


def series(cri: Cri, metrics: Iterator[api.Metric]) -> Series:
    """By name; fails where labels do not fit their descriptor."""
    keys = label_keys(cri)
    found: Series = {}
    for metric in metrics:
        name = metric.name.removeprefix("container_")
        labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
        found.setdefault(name, []).append((labels, metric))
    return found


def cgroup_of(cri: Cri, container_id: str) -> Path:
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = json.loads(cri.runtime.ContainerStatus(request).info["info"])
    return Path("/sys/fs/cgroup") / str(info["cgroup"]).lstrip("/")


def limited(config: api.ContainerConfig) -> None:
    resources = config.linux.resources
    resources.cpu_period, resources.cpu_quota, resources.cpu_shares = 100000, 20000, 1024
    resources.memory_limit_in_bytes = resources.memory_swap_limit_in_bytes = 64 << 20


def test_a_container_tells_every_metric_that_its_files_have(pods: Pods) -> None:
    sandbox = pods.sandbox()
    container_id = pods.running(
        "sh", "-c", "sleep 100000 & sleep 100000", pod=sandbox, change=limited
    )
    cgroup = cgroup_of(pods.cri, container_id)
    until(lambda: len((cgroup / "cgroup.procs").read_text().split()) == 2, "both processes")
    (container,) = listed(pods.cri)[sandbox[0]].container_metrics
    found = series(pods.cri, iter(container.metrics))
    expected = set(ALWAYS.split())
    for name, metrics in CGROUP_FILES.items():
        if (cgroup / name).exists():
            expected |= set(metrics.split())
    if (cgroup / "cpu.max").exists():
        expected |= set(QUOTA.split())
    assert set(found) - set(IO.split()) == expected
    spec = pods.cri.status(container_id)
    for name, values in found.items():
        for labels, metric in values:
            assert labels["container"] == spec.metadata.name, name
            assert labels["id"] == container.container_id == container_id
            assert labels["pod"] == sandbox[1].metadata.name
            assert labels["namespace"] == "test"
            assert labels["image"] == BUSYBOX
            totals = name.endswith("_total") and name != "fs_inodes_total"
            counter = totals or name == "memory_failcnt"
            assert metric.metric_type == (api.COUNTER if counter else api.GAUGE), name
            assert metric.HasField("value")
            # The CRI: 0 for what was read just now, else the time at which it was counted.
            assert bool(metric.timestamp) == (name == "fs_usage_bytes"), name

    def one(name: str) -> int:
        ((_, metric),) = found[name]
        return int(metric.value.value)

    pids = (cgroup / "cgroup.procs").read_text().split()
    assert one("processes") == 2
    assert one("file_descriptors") == sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    assert one("sockets") == 0
    assert abs(one("last_seen") - time.time()) < 60
    assert one("start_time_seconds") == spec.started_at // 10**9
    room = os.statvfs("/var/lib/criagent/snapshots")
    assert one("fs_limit_bytes") == room.f_blocks * room.f_frsize
    assert one("fs_inodes_total") == room.f_files
    limits = Path(f"/proc/{pids[0]}/limits").read_text()
    soft = re.search(r"Max open files +(\d+)", limits)
    assert soft is not None
    assert one("ulimits_soft") == int(soft[1])
    assert found["ulimits_soft"][0][0]["ulimit"] == "max_open_files"


def test_cpu_seconds_are_whole_ones_of_the_file(pods: Pods) -> None:
    sandbox = pods.sandbox()
    container_id = pods.running("sh", "-c", "while :; do :; done", pod=sandbox)
    cgroup = cgroup_of(pods.cri, container_id)

    def seconds() -> int:
        return int((cgroup / "cpu.stat").read_text().split()[1]) // 10**6

    until(lambda: seconds() >= 1, "a second of CPU time")
    before = seconds()
    (container,) = listed(pods.cri)[sandbox[0]].container_metrics
    ((labels, told),) = series(pods.cri, iter(container.metrics))["cpu_usage_seconds_total"]
    assert before <= told.value.value <= seconds()
    assert labels["cpu"] == "total"


def test_a_pod_tells_its_network_and_its_own_cgroup(pods: Pods) -> None:
    Path("/sys/fs/cgroup/metrics-pod").mkdir()
    sandbox = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", "/metrics-pod"))
    container_id = pods.running("ping", "-c", "2", "-i", "0.2", "10.88.0.1", pod=sandbox)
    until(lambda: pods.cri.status(container_id).finished_at > 0, "the pings")
    pods.running(pod=sandbox)
    told = listed(pods.cri)[sandbox[0]]
    found = series(pods.cri, iter(told.metrics))
    assert set(NETWORK.split()) <= set(found)
    assert {"cpu_usage_seconds_total", "processes", "last_seen", "start_time_seconds"} <= set(found)
    ((labels, received),) = found["network_receive_bytes_total"]
    assert received.value.value > 100
    assert labels == {
        "pod": sandbox[1].metadata.name,
        "namespace": "test",
        "container": "",
        "id": sandbox[0],
        "image": "",
        "interface": "eth0",
    }
    assert len(told.container_metrics) == 1  # the other one has ended
    pods.cri.remove_pod(sandbox[0])
    Path("/sys/fs/cgroup/metrics-pod").rmdir()


def test_pods_without_own_cgroup_or_network_have_their_containers_only(pods: Pods) -> None:
    def on_host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    sandbox, stopped = pods.sandbox(on_host), pods.sandbox()
    pods.running(pod=sandbox)
    pods.cri.stop_pod(stopped[0])
    told = listed(pods.cri)
    assert set(told) == {sandbox[0]}
    assert not told[sandbox[0]].metrics
    assert len(told[sandbox[0]].container_metrics) == 1


def test_the_streamed_list_tells_each_pod_once(pods: Pods) -> None:
    sandboxes = {pods.sandbox()[0] for _ in range(23)}
    pieces = list(
        pods.cri.runtime.StreamPodSandboxMetrics(api.StreamPodSandboxMetricsRequest(), timeout=30)
    )
    told = [one.pod_sandbox_id for piece in pieces for one in piece.pod_sandbox_metrics]
    assert all(piece.pod_sandbox_metrics for piece in pieces)
    assert len(told) == len(sandboxes)
    assert set(told) == sandboxes


def crictl(*words: str) -> str:
    done = subprocess.run(["crictl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removeprefix("\x1b[2J\x1b[H")  # crictl clears the screen first


def test_crictl_shows_metrics_and_statistics(pods: Pods) -> None:
    sandbox = pods.sandbox()
    container_id = pods.running(pod=sandbox)
    descriptors = json.loads(crictl("metricdescs"))["descriptors"]
    assert {one["name"] for one in descriptors} == set(label_keys(pods.cri))
    (pod,) = json.loads(crictl("metricsp"))["podMetrics"]
    assert pod["podSandboxId"] == sandbox[0]
    assert {one["name"] for one in pod["metrics"]} >= {
        f"container_{name}" for name in NETWORK.split()
    }
    (stats,) = json.loads(crictl("stats", "-o", "json"))["stats"]
    assert stats["attributes"]["id"] == container_id
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    head, line = crictl("stats").splitlines()
    assert head.split()[:2] == ["CONTAINER", "NAME"]
    assert line.split()[0] == container_id[:13]
    (stats,) = json.loads(crictl("statsp", "-o", "json"))["stats"]
    assert stats["attributes"]["id"] == sandbox[0]
    assert stats["linux"]["network"]["defaultInterface"]["name"] == "eth0"
    assert [one["attributes"]["id"] for one in stats["linux"]["containers"]] == [container_id]
    head, line = crictl("statsp").splitlines()
    assert head.split()[0] == "POD"
    assert line.split()[1] == sandbox[0][:13]


def test_a_filesystem_is_found_by_a_name_of_any_script(tmp_path: Path) -> None:
    place = tmp_path / "данные один"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "источник", place], check=True)
    try:
        assert Devices().holding(place) == "источник"
    finally:
        subprocess.run(["umount", place], check=True)
