# SPDX-License-Identifier: Apache-2.0
"""Container rows."""

from __future__ import annotations

import sqlite3

from criagent.model.container import Container, container_key
from criagent.store.db import Database
from criagent.store.rows import RowStore


class ContainerStore(RowStore[Container]):
    """Containers by id, by name within their sandbox, and by sandbox."""

    noun = "container"
    table = "containers"

    def __init__(self, db: Database) -> None:
        self._by_sandbox: dict[str, set[str]] = {}
        super().__init__(db, Container, lambda c: container_key(c.sandbox_id, c.spec.metadata))

    def of_sandbox(self, sandbox_id: str) -> list[Container]:
        """The sandbox's containers, oldest first."""
        containers = [
            self._rows[container_id] for container_id in self._by_sandbox.get(sandbox_id, ())
        ]
        return sorted(containers, key=lambda c: (c.created_at_ns, c.id))

    def _insert(self, connection: sqlite3.Connection, container: Container, body: bytes) -> None:
        connection.execute(
            "INSERT INTO containers (id, key, sandbox_id, body) VALUES (?, ?, ?, ?)",
            (container.id, self._key(container), container.sandbox_id, body),
        )

    def _remember(self, container: Container) -> None:
        super()._remember(container)
        self._by_sandbox.setdefault(container.sandbox_id, set()).add(container.id)

    def _forget(self, row_id: str) -> None:
        container = self._rows.get(row_id)
        if container is not None:
            members = self._by_sandbox[container.sandbox_id]
            members.discard(row_id)
            if not members:
                del self._by_sandbox[container.sandbox_id]
        super()._forget(row_id)
