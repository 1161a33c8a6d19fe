# SPDX-License-Identifier: Apache-2.0
"""Whether the node can run pods now, as Status, Info and metrics say it."""

from __future__ import annotations

from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.net.pod_network import NetworkCondition, PodNetwork
from criagent.runtime.node.handlers import Handlers
from criagent.store.db import Database


class Conditions:
    """RuntimeReady and NetworkReady."""

    def __init__(
        self, *, handlers: Handlers, db: Database, network: PodNetwork, drivers: SnapshotsByHandler
    ) -> None:
        self._handlers = handlers
        self._db = db
        self._network = network
        self._drivers = drivers

    async def unready(self) -> tuple[str, str]:
        """Reason and message of a false RuntimeReady; both empty when it is true."""
        if problem := self._handlers.problem:
            return "ProgramNotUsable", problem
        if failure := await self._db.failure():
            return "StorageFailing", failure
        if failure := await self._drivers.health():
            return "StorageFailing", failure
        return "", ""

    def network(self) -> NetworkCondition:
        """NetworkReady."""
        return self._network.condition()
