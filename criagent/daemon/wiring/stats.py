# SPDX-License-Identifier: Apache-2.0
"""Statistics put together. The readers share the rates, the counts of layers and their thread."""

from __future__ import annotations

from criagent.cri.backend import Stats
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.stats.cgroup_usage import CpuRates
from criagent.runtime.stats.container import ContainerStatsReader
from criagent.runtime.stats.metrics import PodMetricsReader
from criagent.runtime.stats.pod import PodStatsReader
from criagent.runtime.stats.thread import StatsThread
from criagent.runtime.stats.writable_layers import WritableLayers


def build(
    shared: Shared, node: NodeParts, image: ImageParts, pods: PodParts
) -> tuple[Stats, WritableLayers]:
    """Statistics for the CRI services, and the counts, which run in the background until closed."""
    stores, executors = shared.stores, shared.executors
    layers = WritableLayers(
        drivers=image.drivers,
        rootfs=node.paths.rootfs,
        fs=executors.fs,
        counting=executors.counting,
    )
    rates, thread = CpuRates(), StatsThread(executors.fs)
    containers = ContainerStatsReader(layers=layers, rates=rates, thread=thread)
    pod_stats = PodStatsReader(
        sandboxes=stores.sandboxes,
        containers=stores.containers,
        stats=containers,
        namespaces=pods.namespaces,
        rates=rates,
        thread=thread,
        driver=node.driver,
    )
    metrics = PodMetricsReader(
        containers=stores.containers,
        pods=pod_stats,
        layers=layers,
        thread=thread,
    )

    def forget(object_id: str, value: object) -> None:
        if value is None:
            containers.forget(object_id)

    stores.sandboxes.listeners.append(forget)
    stores.containers.listeners.append(forget)
    return Stats(containers=containers, pods=pod_stats, metrics=metrics), layers
