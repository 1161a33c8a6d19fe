# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of storage drivers: `make storage`. Its end is a table, driver by case.

They need root in a test node, and no agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from criagent.kernel.mount import mountinfo
from tests.storage.ground import Storage
from tests.storage.grounds import SIZE, absent, columns, file_system, first_columns, loops
from tests.storage.killed import Lives, lives
from tests.support.waiting import until

_COLUMNS = {f"{driver}/{kind}": (driver, kind) for driver, kind in columns()}
_RESULTS: dict[str, dict[str, str]] = {}
_REASONS: dict[str, str] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With the mark `long` a test runs once for each driver, else on all of its file systems."""
    if "column" in metafunc.fixturenames:
        long = metafunc.definition.get_closest_marker("long")
        names = [f"{driver}/{kind}" for driver, kind in (first_columns() if long else columns())]
        metafunc.parametrize("column", names, indirect=True)


@pytest.fixture
def column(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A driver and the kind of its file system."""
    driver, kind = _COLUMNS[request.param]
    if reason := absent(driver):
        pytest.skip(reason)
    return driver, kind


@pytest.fixture(scope="session")
def living() -> Iterator[Lives]:
    """Processes with lives that may end early."""
    with lives() as one:
        yield one


@pytest.fixture
def size(request: pytest.FixtureRequest) -> int:
    """Bytes of the file system for snapshots: soon full, but for tests with the mark `room`."""
    room = request.node.get_closest_marker("room")
    return int(room.args[0]) if room else SIZE


@pytest.fixture
def place(column: tuple[str, str], tmp_path: Path, size: int) -> Iterator[tuple[str, Path]]:
    """A driver's name, and an empty file system for it."""
    driver, kind = column
    with file_system(tmp_path / "disk", driver, kind, size) as top:
        yield driver, top


@pytest.fixture
async def storage(place: tuple[str, Path], size: int) -> AsyncIterator[Storage]:
    """One driver on an empty file system."""
    driver, top = place
    one = await Storage(top, driver, top.parent, size=size).open()
    yield one
    await one.close()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Neither a mount nor a loop device of the test stays."""
    yield
    left = [entry.target for entry in mountinfo() if entry.target.startswith(f"{tmp_path}/")]
    assert left == []
    until(lambda: not loops(), "the loop devices to be gone")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of each case for each driver."""
    case, _, parameters = report.location[2].partition("[")
    column = next((name for name in _COLUMNS if name in parameters), "")
    if column and (report.when == "call" or report.outcome != "passed"):
        row = _RESULTS.setdefault(case.removeprefix("test_").replace("_", " "), {})
        outcome = {"passed": "ok", "skipped": "-"}.get(report.outcome, "FAILED")
        row[column] = "FAILED" if row.get(column) == "FAILED" else outcome
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            _REASONS[column] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    width = max(map(len, _RESULTS), default=0)
    terminalreporter.section("storage drivers")
    terminalreporter.line(f"{'case':{width}}  " + "  ".join(_COLUMNS))
    for case, row in _RESULTS.items():
        cells = "  ".join(f"{row.get(name, ''):{len(name)}}" for name in _COLUMNS)
        terminalreporter.line(f"{case:{width}}  {cells}".rstrip())
    for name, reason in _REASONS.items():
        terminalreporter.line(f"- {name}: {reason}")
