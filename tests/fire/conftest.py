# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests/e2e, and a node without its agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import cri, images, make_image, nothing_leaks, pods
from tests.power.life import LOGS
from tests.support import agent

__all__ = ["cri", "images", "make_image", "no_agent", "nothing_leaks", "pods"]


@pytest.fixture
def no_agent() -> Iterator[None]:
    """The node's own agent ends before a test and serves after it."""
    if agent.running():
        agent.stop()
    Path(LOGS).mkdir(exist_ok=True)
    yield
    if not agent.running():
        agent.start().close()
