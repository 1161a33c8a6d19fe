# SPDX-License-Identifier: Apache-2.0
"""Lives of pods as a kubelet leads them: a call that an agent's death cut off is made again."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from tests.support.cri_client import Cri, api, container, pod
from tests.support.waiting import until

T = TypeVar("T")
LOGS = Path("/tmp/soak-logs")
_TRAP = "trap 'exit {code}' TERM; : > /trapped; while :; do sleep 0.05; done"
# Of a container whose monitor was killed before its end, and while it was being stopped.
_LOST = {"ContainerMonitorLost", "Unknown"}


class KubeletKilledError(Exception):
    """The connection of a worker has been closed in the middle of whatever it did."""


class Node:
    """The agent, which the workers and the one who kills share."""

    def __init__(self) -> None:
        self.serving = threading.Event()
        self.serving.set()
        self.ending = threading.Event()
        self.hit: set[str] = set()  # containers whose monitor was killed
        self.workers: list[Worker] = []
        self.enough: dict[str, int] = {}  # counts that end the run when all are reached
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
            if self.enough and all(self.counts[one] >= n for one, n in self.enough.items()):
                self.ending.set()

    def fail(self, what: str) -> None:
        """A failure ends the run, so that its traces are fresh."""
        with self._lock:
            self.failures.append(what)
        self.ending.set()


class Worker:
    """One life after the other until the node's run is ending."""

    def __init__(self, node: Node, name: str, chance: random.Random) -> None:
        self._node = node
        self._name = name
        self._chance = chance
        self._cri = Cri()
        self._number = 0
        self._unanswered: api.PodSandboxConfig | None = None  # of RunPodSandbox
        self._killed = threading.Event()

    def kill(self) -> None:
        """As SIGKILL to its kubelet: its connection ends in the middle of a call."""
        self._killed.set()
        self._cri.close()

    def work(self) -> None:
        """Until the run ends; what goes wrong is a failure of the run with its place."""
        try:
            while self._killed.is_set() or not self._node.ending.is_set():
                with contextlib.suppress(KubeletKilledError):
                    if self._killed.is_set():
                        self._come_back()
                        continue
                    self._number += 1
                    self._life(f"{self._name}-{self._number}")
        except (grpc.RpcError, AssertionError, OSError) as error:
            self._node.fail(f"{self._name}-{self._number}: {error}")
        finally:
            self._cri.close()

    def _life(self, name: str) -> None:
        """A pod, one to four containers that end by themselves, and one that is stopped."""
        logs = LOGS / name
        config = pod(name, log_directory=str(logs))
        self._unanswered = config
        sandbox = self._call(lambda: self._cri.run(config))
        self._unanswered = None
        for number in range(self._chance.randint(1, 4)):
            code = self._chance.randrange(256)
            ended = self._started(sandbox, config, f"short-{number}", f"exit {code}")
            self._await_end(ended)
            self._expect(ended, code)
            self._call(lambda ended=ended: self._cri.remove(ended))
            self._node.count("short containers")
        code = self._chance.randrange(1, 256)
        trapped = self._started(sandbox, config, "stopped", _TRAP.format(code=code))
        if self._await_trap(trapped):
            self._call(lambda: self._cri.stop(trapped, 30))
        self._expect(trapped, code)
        if self._chance.random() < 0.5:
            self._call(lambda: self._cri.stop_pod(sandbox))
        self._call(lambda: self._cri.remove_pod(sandbox))
        for log in logs.iterdir():
            log.unlink()
        logs.rmdir()
        self._node.count("pods")

    def _come_back(self) -> None:
        """As the next kubelet: it knows the pod that is wanted and else only what the agent lists.
        A repeated RunPodSandbox joins the one that the kill has cut off. Then all is removed.
        """
        self._killed.clear()
        self._cri = Cri()
        if self._unanswered is not None:
            config = self._unanswered
            self._call(lambda: self._cri.run(config))
            self._unanswered = None
        for found in self._call(self._cri.pods):
            if found.metadata.name.startswith(f"{self._name}-"):
                self._call(lambda found=found: self._cri.remove_pod(found.id))
        for logs in LOGS.glob(f"{self._name}-*"):
            shutil.rmtree(logs)
        self._node.count("kubelets killed")

    def _started(self, sandbox: str, config: api.PodSandboxConfig, name: str, script: str) -> str:
        wanted = container(name, ["sh", "-c", script])
        made = self._call(lambda: self._cri.create(sandbox, wanted, config))
        self._call(lambda: self._start(made))
        return made

    def _start(self, container_id: str) -> None:
        if self._cri.status(container_id).state == api.CONTAINER_CREATED:
            self._cri.start(container_id)

    def _status(self, container_id: str) -> api.ContainerStatus:
        return self._call(lambda: self._cri.status(container_id))

    def _await_end(self, container_id: str) -> None:
        until(
            lambda: self._status(container_id).state == api.CONTAINER_EXITED,
            f"the end of {container_id}",
            60,
        )

    def _await_trap(self, container_id: str) -> bool:
        """Whether it runs and would answer SIGTERM; not so when its monitor is killed meanwhile."""

        def ready() -> bool:
            if self._status(container_id).state == api.CONTAINER_EXITED:
                return True
            try:
                answer = self._cri.exec(container_id, "test", "-e", "/trapped")
            except (grpc.RpcError, ValueError):  # the agent, the container or this has just died
                return False
            return bool(answer.exit_code == 0)

        until(ready, f"the trap of {container_id}", 60)
        return self._status(container_id).state == api.CONTAINER_RUNNING

    def _expect(self, container_id: str, code: int) -> None:
        status = self._status(container_id)
        assert status.state == api.CONTAINER_EXITED
        if container_id in self._node.hit and status.reason in _LOST:
            assert status.exit_code != 0
            self._node.count("monitors lost")
            return
        answer = f"{status.exit_code} {status.reason}"
        assert status.exit_code == code, f"exit code {answer} of {container_id}, not {code}"

    def _call(self, call: Callable[[], T]) -> T:
        """As a kubelet: what could not be answered is asked again when an agent serves."""
        while True:
            self._node.serving.wait()
            try:
                return call()
            except (grpc.RpcError, ValueError) as error:  # ValueError: the channel is closed
                if self._killed.is_set():
                    raise KubeletKilledError from error
                if isinstance(error, ValueError):
                    raise
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                self._node.count("calls made again")
                until(self._serves, "an agent that serves", 60)

    def _serves(self) -> bool:
        if self._killed.is_set():
            raise KubeletKilledError
        try:
            self._cri.pods()
        except (grpc.RpcError, ValueError):
            return False
        return True
