# SPDX-License-Identifier: Apache-2.0
"""The node of the power cuts: it has the registry, and no agent but those of the cuts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.life import LOGS
from tests.power.node import run
from tests.support import agent


@pytest.fixture(scope="module", autouse=True)
def registry() -> Iterator[None]:
    """The fixture registry, if the node has not got it by `tests/node/up`."""
    assert os.geteuid() == 0, "these tests need root in a test node; see tests/node/up"
    agent.stop()
    Path(LOGS).mkdir(exist_ok=True)
    yield
    agent.start().close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Memory for the disks of one test."""
    path = Path("/dev/shm/power")
    path.mkdir()
    yield path
    run("rm", "-rf", "--one-file-system", path)
