# SPDX-License-Identifier: Apache-2.0
"""What plugins ask for of containers that run: new limits, and their end."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from criagent._proto import nri_pb2
from criagent.base.errors import AgentError, NotFoundError
from criagent.nri import resources
from criagent.nri.container_verbs import VerbsToCome
from criagent.runtime.node.facts import NodeFacts

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Effects:
    """Carries out what plugins ask for. Failures are logged: they concern other containers."""

    def __init__(self, node: NodeFacts, verbs: VerbsToCome) -> None:
        self._node = node
        self._verbs = verbs

    async def cause(
        self,
        updates: Iterable[nri_pb2.ContainerUpdate],
        evictions: Iterable[nri_pb2.ContainerEviction],
        call: str,
    ) -> None:
        """What answers to `call` ask for."""
        await self.evict(evictions, call)
        await self.update(updates, call)

    async def update(
        self, updates: Iterable[nri_pb2.ContainerUpdate], who: str
    ) -> list[nri_pb2.ContainerUpdate]:
        """Set limits; the updates that failed although their failure matters."""
        failed = []
        for update in updates:
            try:
                await self._update(update)
            except (AgentError, OSError) as error:
                log.warning(
                    "nri_update_failed",
                    asked_by=who,
                    container_id=update.container_id[:80],
                    error=str(error),
                )
                if not update.ignore_failure:
                    failed.append(update)
            else:
                log.info("nri_container_updated", asked_by=who, container_id=update.container_id)
        return failed

    async def evict(self, evictions: Iterable[nri_pb2.ContainerEviction], who: str) -> None:
        """End containers at once; the kubelet sees an exit."""
        for eviction in evictions:
            facts = {"container_id": eviction.container_id[:80], "reason": eviction.reason[:500]}
            log.warning("nri_container_evicted", asked_by=who, **facts)
            try:
                await self._verbs.known.stop(eviction.container_id, 0)
            except (AgentError, OSError) as error:
                log.warning("nri_eviction_failed", asked_by=who, **facts, error=str(error))

    async def _update(self, update: nri_pb2.ContainerUpdate) -> None:
        if len(update.container_id) != 64:  # a prefix could mean another container by now
            raise NotFoundError("not the id of a container")
        given = update.linux.resources
        for name in ("blockio_class", "rdt_class"):
            if given.HasField(name):
                raise AgentError(f"{name} of a container that exists cannot change")
        more = resources.available(resources.beyond_cri(given), self._node)
        await self._verbs.known.update(update.container_id, resources.to_cri(given), more)
