# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of storage drivers: `make storage`. Its end is a table, driver by case.

They need root in a test node, and no agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.image.snapshots.drivers.available import DRIVERS
from tests.storage.ground import Storage, file_system

_RESULTS: dict[str, dict[str, str]] = {}


@pytest.fixture(params=sorted(DRIVERS))
async def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Storage]:
    """One driver on an empty file system."""
    place: Path = tmp_path_factory.mktemp("storage")
    with file_system(place / "disk", request.param) as top:
        one = await Storage(top, request.param, place).open()
        yield one
        await one.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of each case for each driver."""
    case, bracket, driver = report.location[2].partition("[")
    if bracket and (report.when == "call" or report.outcome != "passed"):
        row = _RESULTS.setdefault(case.removeprefix("test_").replace("_", " "), {})
        name = driver.rstrip("]")
        row[name] = "FAILED" if "FAILED" in (report.outcome.upper(), row.get(name)) else "ok"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    drivers = sorted({driver for row in _RESULTS.values() for driver in row})
    width = max(map(len, _RESULTS), default=0)
    terminalreporter.section("storage drivers")
    terminalreporter.line(f"{'case':{width}}  " + "  ".join(f"{name:8}" for name in drivers))
    for case, row in _RESULTS.items():
        cells = "  ".join(f"{row.get(name, '-'):8}" for name in drivers)
        terminalreporter.line(f"{case:{width}}  {cells}")
