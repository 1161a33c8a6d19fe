# SPDX-License-Identifier: Apache-2.0
"""Tests against the agent of a test node: `tests/node/up python3 -m pytest tests/e2e`.

Every test must leave the node as it found it: mounts, links, rules, cgroups, processes, addresses,
files. They fail without root, they are never skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.made_images import ImageMaker
from tests.support.node_state import differences, settled_state
from tests.support.pods import Pods


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    """The images that tests share are there before the first state is taken."""
    assert os.geteuid() == 0, "these tests need root in a test node; see tests/node/up"
    cri = Cri()
    cri.pull(BUSYBOX)
    cri.pull(DEBIAN)
    cri.close()


@pytest.fixture
def cri() -> Iterator[Cri]:
    """A client of the running agent."""
    if not agent.running():
        agent.start().close()
    client = Cri()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def nothing_leaks(cri: Cri) -> Iterator[None]:
    """Compare the node before and after."""
    before = settled_state(cri)
    yield
    if not agent.running():
        agent.start().close()
    with_fresh = Cri()
    for sandbox in with_fresh.pods():
        with_fresh.remove_pod(sandbox.id)
    after = settled_state(with_fresh)
    with_fresh.close()
    left = differences(before, after)
    assert not left, left


@pytest.fixture
def pods(cri: Cri, tmp_path: Path, request: pytest.FixtureRequest) -> Pods:
    """A maker of pods for this test."""
    return Pods(cri, tmp_path, request.node.name[:40].replace("[", "-").replace("]", ""))


@pytest.fixture
def make_image(cri: Cri) -> Iterator[ImageMaker]:
    """Makes images for this test alone."""
    maker = ImageMaker(cri)
    yield maker
    maker.clean()
