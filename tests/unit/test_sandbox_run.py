# SPDX-License-Identifier: Apache-2.0
"""RunPodSandbox of a name whose last attempt left a row that could not even be marked."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from criagent.base import faults
from criagent.base.aio import KeyedLocks
from criagent.base.errors import AgentError, AlreadyExistsError
from criagent.model.common import NamespaceMode, NamespaceOptions
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSecurity, SandboxSpec
from criagent.runtime.node.clock import Clock, Identities
from criagent.runtime.node.handlers import HandlerFacts, Handlers
from criagent.runtime.nri.door import NoPlugins
from criagent.runtime.pod.objects import SandboxObjects
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.pod.transitions import SandboxTransitions
from criagent.runtime.spec.security.selinux import Selinux
from criagent.runtime.verbs.run_sandbox import NewSandboxes, SandboxCreations, SandboxRunner
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

NODE = NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER)
SPEC = SandboxSpec(
    metadata=SandboxMetadata(name="web", uid="u1", namespace="ns"),
    security=SandboxSecurity(namespaces=NODE),
)
OLD = Sandbox(id=SandboxId("0" * 64), spec=SPEC, created_at_ns=1, boot_id="b")


class Kernel:
    """Stands for namespaces, files and holder: what was made and taken away, by sandbox."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.removed: list[str] = []
        self.refuses = ""
        self.before_refusal: Callable[[], Awaitable[None]] = _nothing

    async def create(self, sandbox: Sandbox, first: Callable[[], None]) -> None:
        first()
        self.made.add(sandbox.id)

    async def writer(self, sandbox: Sandbox) -> Callable[[], None]:
        return partial(self.made.add, sandbox.id)

    async def remove(self, sandbox: Sandbox | str) -> None:
        if self.refuses:
            await self.before_refusal()
            raise AgentError(self.refuses)
        name = sandbox if isinstance(sandbox, str) else sandbox.id
        self.made.discard(name)
        self.removed.append(name)

    def watch(self, sandbox: Sandbox) -> None:
        del sandbox

    def directory(self, name: str) -> Path:
        return Path("/run/sandboxes", name)


async def _nothing() -> None:
    pass


@dataclasses.dataclass
class Ground:
    db: Database
    store: SandboxStore
    kernel: Kernel
    runner: SandboxRunner


@pytest_asyncio.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    db = Database.open(tmp_path / "state.db")
    store, kernel, clock = SandboxStore(db), Kernel(), Clock()
    part = cast(Any, kernel)
    objects = SandboxObjects(networks=part, namespaces=part, files=part, holder=part)
    program = Path("/bin/true")
    crun = HandlerFacts(name="crun", path=program, userns_problem="")
    runner = SandboxRunner(
        store=store,
        making=SandboxCreations(limit_s=60),
        handlers=Handlers([crun], default="crun", monitor=program),
        objects=objects,
        watch=part,
        teardown=SandboxTeardown(
            store=store,
            transitions=SandboxTransitions(store=store, locks=KeyedLocks()),
            objects=objects,
            plugins=NoPlugins(),
            clock=clock,
        ),
        new=NewSandboxes(
            store=store,
            objects=objects,
            selinux=cast(Selinux, _NoLabels()),
            identities=Identities(clock, "b", lambda: "1" * 64),
            require_profile=lambda ref: ref,
        ),
        plugins=NoPlugins(),
    )
    yield Ground(db, store, kernel, runner)
    faults.arm(None)
    db.close()


class _NoLabels:
    def level(self, *_: object) -> str:
        return ""


async def test_remains_of_a_failed_attempt_go_before_the_next(ground: Ground) -> None:
    await ground.store.insert(OLD)
    ground.kernel.made.add(OLD.id)
    made = await ground.runner.run(SPEC)
    assert ground.store.all() == [made]
    assert ground.kernel.made == {made.id}
    assert OLD.id in ground.kernel.removed


async def test_remains_that_cannot_go_refuse_the_next_and_stay_known(ground: Ground) -> None:
    await ground.store.insert(OLD)
    ground.kernel.refuses = "umount2: Device or resource busy"
    with pytest.raises(AgentError, match="busy"):
        await ground.runner.run(SPEC)
    assert ground.store.all() == [OLD]
    ground.kernel.refuses = ""
    assert (await ground.runner.run(SPEC)).id == "1" * 64


@pytest.mark.parametrize("fields", [{"ready_at_ns": 5, "stopped_at_ns": 6}, {"stopped_at_ns": 6}])
async def test_what_is_listed_is_left_to_the_kubelet(ground: Ground, fields: Any) -> None:
    listed = dataclasses.replace(OLD, **fields)
    await ground.store.insert(listed)
    with pytest.raises(AlreadyExistsError, match="remove it first"):
        await ground.runner.run(SPEC)
    assert ground.store.all() == [listed]


async def test_a_mark_that_the_disk_does_not_take_hides_no_cause_and_bars_no_repeat(
    ground: Ground,
) -> None:
    faults.arm(None, ["sandbox-run:namespaces=EIO"])

    async def query_only(value: int) -> None:
        ground.db._connection.execute(f"PRAGMA query_only = {value}")

    ground.kernel.before_refusal = partial(query_only, 1)  # the disk becomes read-only there
    ground.kernel.refuses = "umount2: Device or resource busy"
    with capture_logs() as lines, pytest.raises(OSError, match="sandbox-run:namespaces") as caught:
        await ground.runner.run(SPEC)
    assert "busy" in caught.value.__notes__[0]
    assert not any("listed" in note for note in caught.value.__notes__)
    assert [line["event"] for line in lines] == ["undo_failed", "sandbox_not_listed"]
    assert "read-only" in lines[1]["reason"]
    (left,) = ground.store.all()
    assert not left.stopped_at_ns
    await query_only(0)
    ground.kernel.refuses = ""
    made = await ground.runner.run(SPEC)
    assert ground.store.all() == [made]
