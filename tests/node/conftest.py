"""Tests against the agent of a test node: `tests/node/up python3 -m pytest tests/node`.

Every test must leave the node as it found it: mounts, links, rules, cgroups, processes, addresses,
files. They fail without root, they are never skipped.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import agent
import pytest
from cri_client import BUSYBOX, DEBIAN, Cri, api, container, pod
from node_state import differences, settled_state


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


if TYPE_CHECKING:
    from made_images import ImageMaker


class Pods:
    """Makes pods and containers with names of their own."""

    def __init__(self, cri: Cri, logs: Path, name: str) -> None:
        self.cri = cri
        self.logs = logs
        self._name = name
        self._numbers = itertools.count(1)  # for threads, too

    def config(self, **fields: object) -> api.PodSandboxConfig:
        return pod(f"{self._name}-{next(self._numbers)}", log_directory=str(self.logs), **fields)

    def sandbox(
        self, change: Callable[[api.PodSandboxConfig], object] = lambda _: None
    ) -> tuple[str, api.PodSandboxConfig]:
        config = self.config()
        change(config)
        return self.cri.run(config), config

    def running(
        self,
        *command: str,
        change: Callable[[api.ContainerConfig], object] = lambda _: None,
        pod: tuple[str, api.PodSandboxConfig] | None = None,
    ) -> str:
        """The id of a started container in a pod of its own."""
        sandbox, config = pod or self.sandbox()
        wanted = container(f"c{next(self._numbers)}", command or ("sleep", "100000"))
        change(wanted)
        container_id = self.cri.create(sandbox, wanted, config)
        self.cri.start(container_id)
        return container_id

    def log(self, container_id: str) -> str:
        """Plain content of a container's log."""
        path = Path(self.cri.status(container_id).log_path)
        return "".join(
            line.split(" ", 3)[3] + ("\n" if " F " in line[:60] else "")
            for line in path.read_text().splitlines()
        )


@pytest.fixture
def pods(cri: Cri, tmp_path: Path, request: pytest.FixtureRequest) -> Pods:
    """A maker of pods for this test."""
    return Pods(cri, tmp_path, request.node.name[:40].replace("[", "-").replace("]", ""))


@pytest.fixture
def make_image(cri: Cri) -> Iterator[ImageMaker]:
    """Makes images for this test alone."""
    from made_images import ImageMaker  # it imports tests that import this file

    maker = ImageMaker(cri)
    yield maker
    maker.clean()
