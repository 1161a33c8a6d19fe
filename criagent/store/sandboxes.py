# SPDX-License-Identifier: Apache-2.0
"""Sandbox rows."""

from __future__ import annotations

from criagent.model.sandbox import Sandbox
from criagent.store.db import Database
from criagent.store.rows import RowStore


class SandboxStore(RowStore[Sandbox]):
    """Sandboxes by id and by metadata (`SandboxMetadata.key`)."""

    noun = "sandbox"
    table = "sandboxes"

    def __init__(self, db: Database) -> None:
        super().__init__(db, Sandbox, lambda sandbox: sandbox.spec.metadata.key)
