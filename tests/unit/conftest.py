# SPDX-License-Identifier: Apache-2.0
"""Settings of all unit tests."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.pulling import Node, Registry

# How long an example takes says more of the machine's load than of the code. No failed example is
# recorded: the database would cost a write for each test, and a found bug gets a test of its own.
settings.register_profile("any-machine", deadline=None, database=None)
settings.load_profile("any-machine")


def pytest_collection_finish() -> None:
    """Hide modules and tests from the garbage collector; some tests need full collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """The image half of an agent in a directory of its own."""
    from tests.support.pulling import Node  # with the HTTP client: few tests need it

    one = Node(tmp_path)
    yield one
    await one.close()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    """A registry on loopback, empty."""
    from tests.support.pulling import Registry  # as above

    one = Registry()
    await one.start()
    yield one
    await one.stop()
