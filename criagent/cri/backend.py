# SPDX-License-Identifier: Apache-2.0
"""What the CRI services call: small records of verbs and readers, filled by daemon/wiring.

One record for each group of calls. A comment names the method behind a callable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from criagent.cri.conditions import Conditions
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.net.pod_network import PodNetwork
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.stats.container import ContainerStatsReader
from criagent.runtime.stats.metrics import PodMetricsReader
from criagent.runtime.stats.pod import PodStatsReader
from criagent.runtime.verbs.attach import Attacher
from criagent.runtime.verbs.exec_stream import ExecStreamer
from criagent.runtime.verbs.exec_sync import ExecResult
from criagent.runtime.verbs.port_forward import PortForwarder
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sandboxes:
    """Pods. Ids may be unique prefixes."""

    store: SandboxStore
    run: Callable[[SandboxSpec], Awaitable[Sandbox]]  # SandboxRunner.run
    stop: Callable[[str], Awaitable[None]]  # SandboxStopper.stop
    remove: Callable[[str], Awaitable[None]]  # SandboxRemover.remove
    # SandboxResizer.update, with overhead and resources
    update: Callable[[str, Resources | None, Resources | None], Awaitable[None]]
    describe: Callable[[Sandbox], Mapping[str, Any]]  # Describer.sandbox


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Containers:
    """Containers. Ids may be unique prefixes."""

    store: ContainerStore
    create: Callable[[str, ContainerSpec], Awaitable[Container]]  # ContainerCreator.create
    start: Callable[[str], Awaitable[None]]  # ContainerStarter.start
    stop: Callable[[str, int], Awaitable[None]]  # ContainerStopper.stop
    remove: Callable[[str], Awaitable[None]]  # ContainerRemover.remove
    update: Callable[[str, Resources], Awaitable[None]]  # ResourceUpdater.update
    reopen: Callable[[str], Awaitable[None]]  # LogReopener.reopen
    describe: Callable[[Container], Awaitable[Mapping[str, Any]]]  # Describer.container


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Checkpoints of containers and pods. Ids may be unique prefixes."""

    container: Callable[[str, str, int], Awaitable[None]]  # ContainerCheckpoint.checkpoint
    pod: Callable[[str, str, Sequence[str], float], Awaitable[None]]  # PodCheckpoint.checkpoint
    # PodRestorer.restore
    restore: Callable[
        [str, SandboxSpec, Sequence[ContainerSpec], float],
        Awaitable[tuple[Sandbox, list[Container]]],
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Commands in containers, and streams to containers and pods."""

    exec_sync: Callable[[str, Sequence[str], int], Awaitable[ExecResult]]  # ExecSync.run
    exec: ExecStreamer
    attach: Attacher
    forward: PortForwarder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of containers and pods. Their messages are made off the loop."""

    containers: ContainerStatsReader
    pods: PodStatsReader
    metrics: PodMetricsReader


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Facts about the node and the agent; `network` is that of new pods."""

    conditions: Conditions
    handlers: Handlers
    network: PodNetwork
    paths: RuntimePaths
    driver: CgroupDriver
    facts: NodeFacts
    nri: Callable[[], Mapping[str, Any]]  # NriParts.report
