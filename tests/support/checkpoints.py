# SPDX-License-Identifier: Apache-2.0
"""Pods that are checkpointed and restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.waiting import until

# Counts in a file, in a line of its log, and in memory, which alone tells how far it is.
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; echo line $i; sleep 0.05; done"
Change = Callable[[api.ContainerConfig], object]


class CheckpointedPod:
    """A pod with its containers, and what the kubelet would restore it with."""

    def __init__(self, pods: Pods, handler: str = "runc", **fields: object) -> None:
        self.pods = pods
        self.handler = handler
        self.config = pods.config(**fields)
        self.sandbox = pods.cri.run(self.config, handler=handler)
        self.configs: list[api.ContainerConfig] = []
        self.ids: list[str] = []

    def add(self, *command: str, change: Change = lambda _: None) -> str:
        """A running container, which counts unless it has a command."""
        config = container(f"c{len(self.ids)}", command or ("sh", "-c", COUNT))
        change(config)
        container_id = self.pods.cri.create(self.sandbox, config, self.config)
        self.pods.cri.start(container_id)
        self.configs.append(config)
        self.ids.append(container_id)
        return container_id

    def checkpoint(self, output: Path, timeout: float = 120) -> None:
        """CheckpointPod of all containers into the new directory `output`."""
        output.mkdir(mode=0o700)
        request = api.CheckpointPodRequest(
            pod_sandbox_id=self.sandbox, output_path=str(output), container_ids=self.ids
        )
        self.pods.cri.runtime.CheckpointPod(request, timeout=timeout)

    def remove(self) -> None:
        """The pod is gone; its checkpoint stays."""
        self.pods.cri.remove_pod(self.sandbox)

    def request(self, output: Path) -> api.RestorePodRequest:
        """A new pod of another name and the same containers, with logs in another directory."""
        config = self.pods.config(hostname="restored")
        config.log_directory += f"/{config.metadata.name}"
        config.linux.CopyFrom(self.config.linux)
        return api.RestorePodRequest(
            checkpoint_path=str(output),
            config=config,
            runtime_handler=self.handler,
            container_configs=self.configs,
        )


def restore(
    pods: Pods, request: api.RestorePodRequest, timeout: float | None = 120
) -> tuple[str, list[str]]:
    """RestorePod; the sandbox and its containers in the request's order."""
    response = pods.cri.runtime.RestorePod(request, timeout=timeout)
    ids = {one.name: one.container_id for one in response.restored_containers}
    return response.pod_sandbox_id, [ids[one.metadata.name] for one in request.container_configs]


def start(pods: Pods, ids: Sequence[str]) -> None:
    """StartContainer of each, as the kubelet does."""
    for container_id in ids:
        pods.cri.start(container_id)


def count(pods: Pods, container_id: str) -> int:
    """What a counting container has in its file."""
    said = b""

    def read() -> bool:
        nonlocal said
        said = pods.cri.exec(container_id, "cat", "/count").stdout
        return bool(said)

    until(read, "the count", 60)
    return int(said)


def goes_on(pods: Pods, container_id: str) -> int:
    """The container counts, from where it was; the last number."""
    before = count(pods, container_id)
    until(lambda: count(pods, container_id) > before, "the next number", 60)
    return count(pods, container_id)
