# SPDX-License-Identifier: Apache-2.0
"""Metrics of the CRI: the catalogue, and values from files as kernels write them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from criagent.cri.convert.metrics import descriptors, pod_metrics
from criagent.kernel import cgroupfs
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.stats.metric_catalogue import BASE_LABELS, CATALOGUE, CPU_USAGE, PROCESSES
from criagent.runtime.stats.metric_values import (
    Devices,
    Value,
    cgroup_values,
    filesystem_values,
    process_values,
)
from criagent.runtime.stats.metrics import PodMetrics

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
# What critest requires, and what it does not yet require.
REQUIRED = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total
cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total last_seen
memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total processes
sockets spec_cpu_period spec_cpu_shares spec_memory_limit_bytes spec_memory_swap_limit_bytes
start_time_seconds threads threads_max
""".split()
MORE = """
hugetlb_max_usage_bytes hugetlb_usage_bytes pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total
pressure_memory_waiting_seconds_total spec_cpu_quota spec_memory_reservation_limit_bytes
ulimits_soft
""".split()

FILES = {
    "cpu.stat": "usage_usec 7900000\nuser_usec 5000000\nsystem_usec 2900000\n"
    "nr_periods 40\nnr_throttled 4\nthrottled_usec 2500000\n",
    "cpu.max": "20000 100000\n",
    "cpu.weight": "39\n",
    "memory.current": "1000\n",
    "memory.stat": "anon 300\nfile 500\nkernel 70\nfile_mapped 40\ninactive_file 200\n"
    "pgfault 12\npgmajfault 5\n",
    "memory.max": "67108864\n",
    "memory.min": "0\n",
    "memory.peak": "2000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n",
    "memory.swap.current": "64\n",
    "memory.swap.max": "max\n",
    "io.stat": "259:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n",
    "pids.current": "6\n",
    "pids.max": "max\n",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n",
}


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory of the cgroup "/c"."""
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path)
    (tmp_path / "c").mkdir()
    return tmp_path / "c"


def told(shares: int = 0) -> dict[str, int]:
    """Values of the cgroup "/c" by name and labels, without the common prefix."""
    with cgroupfs.Reader("/c") as files:
        return {
            " ".join([value.metric.name.removeprefix("container_"), *value.labels]): value.number
            for value in cgroup_values(files, Devices(), shares)
        }


def test_the_catalogue_has_every_name_once() -> None:
    names = [metric.name.removeprefix("container_") for metric in CATALOGUE]
    assert sorted(names) == sorted(REQUIRED + MORE)
    assert (len(REQUIRED), len(MORE)) == (45, 11)
    for found in descriptors():
        assert found.help.endswith(".")
        assert tuple(found.label_keys[:5]) == BASE_LABELS


def test_the_page_lists_every_name_with_type_and_labels() -> None:
    listed = {
        name: (kind, tuple(label.strip() for label in labels.split(",") if label.strip()))
        for name, kind, labels in re.findall(
            r"^\| (container_\w+) \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE
        )
    }
    assert listed == {
        metric.name: ("counter" if metric.counter else "gauge", metric.labels)
        for metric in CATALOGUE
    }


def test_values_of_a_cgroup_with_every_controller(cgroup: Path) -> None:
    for name, text in FILES.items():
        (cgroup / name).write_text(text)
    assert told(shares=1024) == {
        "cpu_user_seconds_total": 5,
        "cpu_system_seconds_total": 2.9,
        "cpu_usage_seconds_total total": 7.9,
        "cpu_cfs_periods_total": 40,
        "cpu_cfs_throttled_periods_total": 4,
        "cpu_cfs_throttled_seconds_total": 2.5,
        "spec_cpu_shares": 1024,
        "spec_cpu_period": 100000,
        "spec_cpu_quota": 20000,
        "memory_usage_bytes": 1000,
        "memory_working_set_bytes": 800,
        "memory_cache": 500,
        "memory_rss": 300,
        "memory_mapped_file": 40,
        "memory_kernel_usage": 70,
        "memory_failures_total pgfault container": 12,
        "memory_failures_total pgfault hierarchy": 12,
        "memory_failures_total pgmajfault container": 5,
        "memory_failures_total pgmajfault hierarchy": 5,
        "memory_max_usage_bytes": 2000,
        "memory_swap": 64,
        "memory_failcnt": 3,
        "oom_events_total": 1,
        "spec_memory_limit_bytes": 67108864,
        "spec_memory_swap_limit_bytes": 0,
        "spec_memory_reservation_limit_bytes": 0,
        "fs_reads_bytes_total 259:0": 4096,
        "fs_writes_bytes_total 259:0": 8192,
        "fs_reads_total 259:0": 1,
        "fs_writes_total 259:0": 2,
        "blkio_device_usage_total 259:0 259 0 Read": 4096,
        "blkio_device_usage_total 259:0 259 0 Write": 8192,
        "threads": 6,
        "threads_max": 0,
        "pressure_cpu_stalled_seconds_total": 1.5,
        "pressure_cpu_waiting_seconds_total": 2.5,
    }


def test_a_file_that_is_not_there_leaves_its_metrics_out(cgroup: Path) -> None:
    (cgroup / "cpu.stat").write_text("usage_usec 1\nuser_usec 1\nsystem_usec 0\n")
    assert set(told(shares=2)) == {
        "cpu_user_seconds_total",
        "cpu_system_seconds_total",
        "cpu_usage_seconds_total total",
    }
    cgroup.joinpath("cpu.stat").unlink()
    assert told() == {}


def test_without_a_quota_there_is_no_throttling_to_tell(cgroup: Path) -> None:
    (cgroup / "cpu.stat").write_text("usage_usec 1\nnr_periods 0\nnr_throttled 0\n")
    (cgroup / "cpu.max").write_text("max 100000\n")
    (cgroup / "cpu.weight").write_text("100\n")
    assert told() == {
        "cpu_usage_seconds_total total": 1e-06,
        "spec_cpu_period": 100000,
        "spec_cpu_shares": 2597,
    }


def test_kernels_before_5_18_have_their_memory_in_parts(cgroup: Path) -> None:
    (cgroup / "memory.current").write_text("9\n")
    (cgroup / "memory.stat").write_text("kernel_stack 1\npagetables 2\nslab 4\nanon 1\n")
    assert told()["memory_kernel_usage"] == 7


def test_processes_descriptors_sockets_and_the_limit_are_counted(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n999999999\n")

    def counted() -> dict[str, int]:
        return {
            value.metric.name.removeprefix("container_"): value.number
            for value in process_values("/c", os.getpid())
        }

    before = counted()
    one, other = socket.socketpair()
    with one, other:
        after = counted()
    assert after["processes"] == 2
    assert after["file_descriptors"] - before["file_descriptors"] == 2
    assert after["sockets"] - before["sockets"] == 2
    assert after["ulimits_soft"] > 0
    assert list(process_values("/none", 1)) == []


def test_the_limit_of_a_process_that_is_not_in_there_is_not_told(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n")
    names = {value.metric.name for value in process_values("/c", os.getppid())}
    assert "container_ulimits_soft" not in names


def test_the_filesystem_is_named_and_has_room(tmp_path: Path) -> None:
    device = Devices().holding(tmp_path)
    values = {value.metric.name: value for value in filesystem_values(tmp_path, device)}
    facts = os.statvfs(tmp_path)
    assert device
    assert values["container_fs_limit_bytes"].number == facts.f_blocks * facts.f_frsize
    assert values["container_fs_inodes_total"].number == facts.f_files
    assert Devices().holding(Path("/proc")) == "proc"


def test_a_time_has_its_fraction_beside_its_whole_seconds() -> None:
    sandbox = Sandbox(
        id=SandboxId("1" * 64),
        spec=SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n")),
        created_at_ns=1,
        boot_id="b",
    )
    values = (Value(CPU_USAGE, 7.9, ("total",)), Value(PROCESSES, 3))
    found = PodMetrics(sandbox=sandbox, values=values, containers=())
    seconds, processes = pod_metrics(found).metrics
    assert (seconds.value.value, seconds.double_value.value) == (7, 7.9)
    assert (processes.value.value, processes.HasField("double_value")) == (3, False)
