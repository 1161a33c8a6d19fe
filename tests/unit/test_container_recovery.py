# SPDX-License-Identifier: Apache-2.0
"""A creation that cannot be undone after a restart is listed, so that it can be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from criagent.base.aio import KeyedLocks
from criagent.model.container import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerSpec,
    ContainerState,
)
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

POD = Sandbox(
    id=SandboxId("b" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="boot",
)
UNFINISHED = Container(
    id=ContainerId("a" * 64),
    sandbox_id=POD.id,
    spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
    created_at_ns=1,
    boot_id="boot",
    handler="crun",
)


class _Erasure:
    """Cannot erase: a mount is busy."""

    async def erase(self, _: Container) -> None:
        raise OSError(16, "Device or resource busy")


async def test_a_creation_that_cannot_be_undone_is_listed_as_exited(tmp_path: Path) -> None:
    db = Database.open(tmp_path / "state.db")
    store = ContainerStore(db)
    await SandboxStore(db).insert(POD)
    await store.insert(UNFINISHED)
    none: Any = None
    recovery = ContainerRecovery(
        exits=none,
        erasure=cast(Any, _Erasure()),
        ending=none,
        transitions=Transitions(store=store, locks=KeyedLocks()),
        runtimes={},
        paths=RuntimePaths(root=tmp_path, run_dir=tmp_path),
        clock=Clock(),
        fs=none,
    )
    with pytest.raises(OSError, match="busy"):
        await recovery.recover(UNFINISHED)
    (left,) = store.all()
    assert left.visible
    assert left.state is ContainerState.EXITED
    assert (left.exit_code, left.reason) == (255, "Unknown")
    db.close()
