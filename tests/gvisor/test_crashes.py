# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of the agent at each point of a gVisor container's life: nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.crash.test_crash_points import points
from tests.gvisor.test_gvisor import CONFIG, OWN, gvisor
from tests.support import agent
from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.waiting import until

__all__ = ["gvisor"]
pytestmark = pytest.mark.root

POINTS = [one for one in points() if re.match(r"container-(?!create:idmapped)", one)]
_TRAP = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
_STATE = Path("/run/criagent/runtime/gvisor")


class Life:
    """The steps of a container's life; each may be repeated after a crash."""

    def __init__(self, pods: Pods, point: str) -> None:
        self.pods = pods
        self.code = 137 if point == "container-stop:killed" else 7
        self.config = pods.config()
        self.sandbox = self.container_id = ""

    def steps(self) -> Iterator[Callable[[], None]]:
        yield from (self.run, self.create, self.start, self.stop, self.remove, self.remove_pod)

    def run(self) -> None:
        self.sandbox = self.pods.cri.run(self.config, handler="gvisor")

    def create(self) -> None:
        config = container("main", ["sh", "-c", _TRAP])
        config.log_path = "main.log"
        self.container_id = self.pods.cri.create(self.sandbox, config, self.config)
        assert [one.id for one in self.pods.cri.containers()] == [self.container_id]

    def start(self) -> None:
        self.pods.cri.start(self.container_id)
        assert self.pods.cri.exec(self.container_id, "true", timeout=60).exit_code == 0
        assert kernels()
        log = self.pods.logs / "main.log"
        until(lambda: log.exists() and "ready" in log.read_text(), "the trap", 60)

    def stop(self) -> None:
        self.pods.cri.stop(self.container_id, 60 if self.code == 7 else 0)
        status = self.pods.cri.status(self.container_id)
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, self.code)
        assert kernels() == []

    def remove(self) -> None:
        self.pods.cri.remove(self.container_id)
        assert {path.name for path in _STATE.iterdir()} <= {OWN}

    def remove_pod(self) -> None:
        self.pods.cri.remove_pod(self.sandbox)


def kernels() -> list[str]:
    """Commands of kernels and file servers: runsc-sandbox and runsc-gofer."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text().replace("\0", " ")
            if command.startswith("runsc"):
                found.append(command)
    return found


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_is_survived_without_loss_or_leak(gvisor: Pods, point: str) -> None:
    agent.stop()
    gvisor.cri.close()
    gvisor.cri = agent.start(f'{CONFIG}[debug]\nkill_at = "{point}"\n')
    life, died = Life(gvisor, point), False
    for step in life.steps():
        try:
            step()
        except grpc.RpcError as error:
            assert agent.died(), f"{error.code()}: {error.details()}"
            died = True
            gvisor.cri.close()
            gvisor.cri = agent.start(CONFIG)
            step()
    assert died, f"nothing in the life of a container reaches {point}"
    assert kernels() == []
