# SPDX-License-Identifier: Apache-2.0
"""Pods and containers for tests, with names of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from tests.support.cri_client import Cri, api, container, pod


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
