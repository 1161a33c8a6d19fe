# SPDX-License-Identifier: Apache-2.0
"""Puts the whole agent together; the order in which its parts start and stop."""

from __future__ import annotations

import dataclasses

from criagent.base.aio import run_in
from criagent.cri.backend import Checkpoints, Containers, Node, Sandboxes, Sessions, Stats
from criagent.cri.conditions import Conditions
from criagent.daemon.wiring import (
    checkpoints,
    containers,
    image,
    network,
    node,
    pods,
    recovery,
    sessions,
    stats,
    verbs,
)
from criagent.daemon.wiring.handlers import LiveHandlers
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.nri import NriParts
from criagent.daemon.wiring.shared import Shared
from criagent.net.pod_network import Networks
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.recovery.recovery import Recovery
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.stats.writable_layers import WritableLayers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What the CRI services call."""

    node: Node
    sandboxes: Sandboxes
    containers: Containers
    checkpoints: Checkpoints
    sessions: Sessions
    stats: Stats


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What runs beside calls."""

    networks: Networks
    holders: HolderWatch
    exits: ExitWatcher
    layers: WritableLayers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """All parts."""

    shared: Shared
    image: ImageParts
    apparmor: AppArmor
    handlers: LiveHandlers
    nri: NriParts
    recovery: Recovery
    background: Background
    backend: Backend

    async def recover(self) -> None:
        """Reconcile rows, disk and kernel; must end before any call but Version is served.

        Layers first: containers stand on them, and what a crash left unfinished gives a full disk
        its space back before rows are written. Then the networks: recovery takes addresses, links
        and ports back through them. Then AppArmor's default profile, so that no container starts
        under that of an older version. Then pods and containers. NRI plugins are told of those
        last; no pod is made without the ones that the agent starts.
        """
        await self.image.images.prepare()
        self.image.check_limits()
        await self.background.networks.start()
        await self.apparmor.prepare()
        await self.recovery.run()
        if self.nri.service is not None:
            await self.nri.service.start()

    async def stop(self, limit_s: float) -> None:
        """Finish what is under way within `limit_s`; containers and their monitors keep running.

        Work first, since all the rest serves it. The networks last: pods lose nothing by it.
        """
        await self.shared.work.drain(limit_s)
        if self.nri.service is not None:
            await self.nri.service.stop()
        await self.background.holders.close()
        await self.background.exits.close()
        await self.background.layers.close()
        await self.image.close()
        await self.background.networks.stop()


async def build(shared: Shared) -> Agent:
    """Every part. Raises UnsupportedError without cgroup v2, or for another driver's root."""
    image_parts = await image.build(shared)
    node_parts = await node.build(shared, image_parts.drivers)
    networks = network.build(shared)
    pod_parts = pods.build(shared, node_parts, networks, image_parts.profiles)
    container_parts = containers.build(shared, node_parts, image_parts)
    stats_calls, layers = stats.build(shared, node_parts, image_parts, pod_parts)
    sandbox_calls, container_calls, creator = verbs.build(
        shared, node_parts, image=image_parts, pods=pod_parts, containers=container_parts
    )
    await run_in(shared.executors.fs, node_parts.prepare)
    return Agent(
        shared=shared,
        image=image_parts,
        apparmor=node_parts.apparmor,
        handlers=node_parts.live,
        nri=node_parts.nri,
        recovery=recovery.build(
            shared, node_parts, image=image_parts, pods=pod_parts, containers=container_parts
        ),
        background=Background(
            networks=networks,
            holders=pod_parts.watch,
            exits=container_parts.exits,
            layers=layers,
        ),
        backend=Backend(
            node=_node_calls(shared, node_parts, networks, image_parts),
            sandboxes=sandbox_calls,
            containers=container_calls,
            checkpoints=checkpoints.build(
                shared,
                node_parts,
                image=image_parts,
                containers=container_parts,
                restorer=checkpoints.restorer(
                    shared,
                    node_parts,
                    pods=pod_parts,
                    containers=container_parts,
                    creator=creator,
                ),
            ),
            sessions=sessions.build(shared, node_parts, pod_parts, container_parts),
            stats=stats_calls,
        ),
    )


def _node_calls(
    shared: Shared, parts: node.NodeParts, networks: Networks, image_parts: ImageParts
) -> Node:
    conditions = Conditions(
        handlers=parts.handlers,
        db=shared.stores.db,
        network=networks.default,
        drivers=image_parts.drivers,
    )
    return Node(
        conditions=conditions,
        handlers=parts.handlers,
        network=networks.default,
        paths=parts.paths,
        driver=parts.driver,
        facts=parts.facts,
        nri=parts.nri.report,
    )
