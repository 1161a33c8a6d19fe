# SPDX-License-Identifier: Apache-2.0
"""Times of events when the wall clock is set back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from criagent.cri.events import Events
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.node.clock import Clock
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore


async def test_a_wall_clock_that_is_set_back_does_not_turn_events_round(tmp_path: Path) -> None:
    db = Database.open(tmp_path / "state.db")
    sandboxes = SandboxStore(db)
    wall = iter([1000, 10, 10, 2000])
    clock = Clock(lambda: next(wall))
    events = Events(sandboxes, ContainerStore(db), clock.now_ns)
    sandbox = Sandbox(
        id=SandboxId("a" * 64),
        spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
        created_at_ns=1,
        boot_id="boot",
    )
    await sandboxes.insert(sandbox)
    with events.subscription() as told:
        sandbox = dataclasses.replace(sandbox, ready_at_ns=1)
        await sandboxes.update(sandbox)
        await sandboxes.update(dataclasses.replace(sandbox, stopped_at_ns=2))
        await sandboxes.delete(sandbox.id)
        assert [(await anext(told)).created_at for _ in range(4)] == [1000, 1001, 1002, 2000]
    db.close()
