# SPDX-License-Identifier: Apache-2.0
"""Usage and metrics from cgroup files as kernels write them, laid out in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from criagent.kernel import cgroupfs
from criagent.runtime.stats.cgroup_usage import (
    CpuRates,
    Pressure,
    Usage,
    counts_memory,
    read_usage,
    total,
)

CPU = """usage_usec 1500000
user_usec 900000
system_usec 600000
nr_periods 40
nr_throttled 4
throttled_usec 2500000
"""
MEMORY = """anon 300000
file 500000
kernel 70000
file_mapped 40000
inactive_file 200000
pgfault 1234
pgmajfault 5
"""
PRESSURE = """some avg10=1.50 avg60=0.70 avg300=0.20 total=7000001
full avg10=0.50 avg60=0.10 avg300=0.05 total=3000000
"""
GIB = 1 << 30


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory of the cgroup "/pod/c"."""
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path)
    path = tmp_path / "pod" / "c"
    path.mkdir(parents=True)
    return path


def write(cgroup: Path, **files: str) -> None:
    for name, text in files.items():
        (cgroup / name.replace("_", ".")).write_text(text)


def test_everything_a_kernel_with_all_controllers_tells(cgroup: Path) -> None:
    write(
        cgroup,
        cpu_stat=CPU,
        memory_current="1000000\n",
        memory_stat=MEMORY,
        memory_max=f"{GIB}\n",
        memory_swap_current="4096\n",
        memory_swap_max="8192\n",
        cpu_pressure=PRESSURE,
        memory_pressure=PRESSURE,
        io_pressure=PRESSURE,
    )
    usage = read_usage("/pod/c")
    assert usage.cpu_ns == 1_500_000_000
    assert (usage.memory, usage.working_set, usage.rss) == (1_000_000, 800_000, 300_000)
    assert usage.available == GIB - 800_000
    assert (usage.page_faults, usage.major_page_faults) == (1234, 5)
    assert (usage.swap, usage.swap_available) == (4096, 4096)
    assert usage.cpu_pressure is not None
    assert usage.cpu_pressure.some == Pressure(total_us=7000001, avg10=1.5, avg60=0.7, avg300=0.2)
    assert usage.memory_pressure == usage.io_pressure == usage.cpu_pressure
    assert usage.cpu_pressure.full.total_us == 3_000_000


def test_memory_that_the_kernel_does_not_count_is_not_looked_for(cgroup: Path) -> None:
    assert counts_memory()
    for controllers, counted in (("cpu io memory\n", True), ("cpu memory_x\n", False)):
        (cgroupfs.ROOT / "cgroup.controllers").write_text(controllers)
        assert counts_memory() is counted
    write(cgroup, cpu_stat=CPU, memory_current="5", cpu_pressure=PRESSURE)
    usage = read_usage("/pod/c", memory_counted=False)
    assert (usage.cpu_ns, usage.memory, usage.rss) == (1_500_000_000, None, None)
    assert usage.cpu_pressure is not None


def test_a_file_longer_than_a_page_is_read_whole(cgroup: Path) -> None:
    stat = "".join(f"key{number} {number}\n" for number in range(1000)) + MEMORY
    assert len(stat) > 4096
    write(cgroup, memory_current="1000000", memory_stat=stat)
    assert read_usage("/pod/c").rss == 300_000


def test_no_limit_leaves_nothing_available_to_tell(cgroup: Path) -> None:
    write(cgroup, memory_current="5", memory_max="max", memory_swap_current="0")
    write(cgroup, memory_swap_max="max\n")
    usage = read_usage("/pod/c")
    assert (usage.memory, usage.available, usage.swap, usage.swap_available) == (5, None, 0, None)


def test_usage_above_a_lowered_limit_leaves_zero_available(cgroup: Path) -> None:
    write(cgroup, memory_current="50", memory_stat="inactive_file 5\n", memory_max="40")
    assert read_usage("/pod/c").available == 0


def test_more_inactive_file_than_usage_is_a_working_set_of_zero(cgroup: Path) -> None:
    write(cgroup, memory_current="50", memory_stat="inactive_file 60\n")
    assert read_usage("/pod/c").working_set == 0


@pytest.mark.parametrize("name", ["/pod/c", "/pod/gone", "/../../../../nowhere"])
def test_a_file_that_is_not_there_leaves_its_value_unset(cgroup: Path, name: str) -> None:
    assert read_usage(name) == Usage()


def test_pressure_that_is_switched_off_is_unset(cgroup: Path) -> None:
    write(cgroup, cpu_pressure="", io_pressure="some avg10=0 avg60=0 avg300=0 total=0\n")
    usage = read_usage("/pod/c")
    assert usage.cpu_pressure is None
    assert usage.io_pressure is not None
    assert usage.io_pressure.full.total_us == 0  # cpu and irq have one line only


def test_pressure_that_changes_is_read_again(cgroup: Path) -> None:
    for stalled in (1, 2, 1):
        write(cgroup, cpu_pressure=f"some avg10=0 avg60=0 avg300=0 total={stalled}\n")
        pressure = read_usage("/pod/c").cpu_pressure
        assert pressure is not None
        assert pressure.some.total_us == stalled


def test_a_sum_tells_what_any_part_tells() -> None:
    assert total([]) == Usage()
    parts = [Usage(cpu_ns=5, memory=7, available=9), Usage(cpu_ns=6)]
    assert total(parts) == Usage(cpu_ns=11, memory=7)


def test_processes_of_the_whole_tree(cgroup: Path) -> None:
    write(cgroup, cgroup_procs="".join(f"{n}\n" for n in range(1, 3001)))
    (cgroup / "exec-1").mkdir()
    write(cgroup / "exec-1", cgroup_procs="4000\n")
    assert cgroupfs.processes("/pod/c") == [*range(1, 3001), 4000]
    assert cgroupfs.processes("/pod/c", 10) == list(range(1, 11))
    assert cgroupfs.processes("/pod/none") is None


S = 10**9


def test_rates_are_of_windows_between_one_second_and_two_minutes() -> None:
    rates = CpuRates()
    assert rates.rate("a", 100 * S, 5 * S) is None
    assert rates.rate("a", 100 * S + 1, 6 * S) is None  # too soon to tell
    assert rates.rate("a", 110 * S, 10 * S) == S // 2
    assert rates.rate("a", 110 * S + 5000, 11 * S) == S // 2  # as told a moment ago
    assert rates.rate("a", 115 * S, 20 * S) == 2 * S
    assert rates.rate("a", 300 * S, 21 * S) is None  # an average over minutes is no rate
    assert rates.rate("a", 310 * S, 31 * S) == S


def test_a_counter_that_goes_back_starts_anew() -> None:
    rates = CpuRates()
    rates.rate("a", 10 * S, 9 * S)
    assert rates.rate("a", 20 * S, 1 * S) is None
    assert rates.rate("a", 30 * S, 2 * S) == S // 10
    rates.forget("a")
    assert rates.rate("a", 40 * S, 3 * S) is None
