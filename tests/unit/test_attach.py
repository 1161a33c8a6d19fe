# SPDX-License-Identifier: Apache-2.0
"""Clients that only look on share one connection to the monitor, each container for itself."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from criagent.base.errors import UnavailableError
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci import conmon_socket
from criagent.runtime.verbs.attach import Attacher
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

POD = Sandbox(
    id=SandboxId("b" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="this",
)


class Monitor:
    """The listening end of a monitor's attach socket, for which `backlog` clients may wait."""

    def __init__(self, path: Path, backlog: int) -> None:
        path.parent.mkdir(parents=True)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.setblocking(False)
        self.clients: list[socket.socket] = []

    def fill(self) -> None:
        """Let clients wait until no other can."""
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.clients.append(client)
            client.setblocking(False)
            try:
                client.connect(str(self.path))
            except BlockingIOError:
                return

    def accept(self) -> int:
        """How many clients have connected since the last call."""
        count = 0
        while True:
            try:
                self.clients.append(self.listener.accept()[0])
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        for end in (self.listener, *self.clients):
            end.close()


class Ground:
    """An attacher of two running containers, `a` and `b`, whose stdin is open once."""

    def __init__(self, top: Path) -> None:
        self.db = Database.open(top / "state.db")
        self.store = ContainerStore(self.db)
        paths = RuntimePaths(root=top, run_dir=top)
        self.attacher = Attacher(store=self.store, paths=paths)
        self.monitors = {
            name: Monitor(paths.container(name * 64) / "attach", backlog=5) for name in "ab"
        }

    async def prepare(self) -> None:
        await SandboxStore(self.db).insert(POD)
        for name in self.monitors:
            spec = ContainerSpec(
                metadata=ContainerMetadata(name=name), image="i", stdin=True, stdin_once=True
            )
            await self.store.insert(
                Container(
                    id=ContainerId(name * 64),
                    sandbox_id=POD.id,
                    spec=spec,
                    created_at_ns=1,
                    boot_id="this",
                    handler="crun",
                    ready_at_ns=2,
                    started_at_ns=3,
                )
            )

    def look_on(self, name: str) -> asyncio.Task[object]:
        return asyncio.create_task(self.attacher.connect(name * 64, stdin=False))


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    with tempfile.TemporaryDirectory() as top:  # a socket's path is short
        made = Ground(Path(top))
        await made.prepare()
        yield made
        for monitor in made.monitors.values():
            monitor.close()
        await made.attacher.close()
        made.db.close()


async def test_those_who_look_on_share_one_connection_of_their_container(ground: Ground) -> None:
    await asyncio.gather(*(ground.look_on("a") for _ in range(3)))
    await ground.look_on("a")
    await ground.look_on("b")
    assert [monitor.accept() for monitor in ground.monitors.values()] == [1, 1]


async def test_a_monitor_that_takes_no_client_delays_only_its_own_container(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conmon_socket, "connected", partial(conmon_socket.connected, limit_s=60))
    busy = ground.monitors["a"]
    busy.fill()
    waiting = ground.look_on("a")
    async with asyncio.timeout(20):
        await ground.look_on("b")
    assert not waiting.done()
    busy.accept()
    async with asyncio.timeout(20):
        await waiting
    assert busy.accept() == 1


async def test_all_who_wait_for_a_monitor_hear_that_it_takes_no_client(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conmon_socket, "connected", partial(conmon_socket.connected, limit_s=0.05))
    ground.monitors["a"].fill()
    failures = await asyncio.gather(
        *(ground.look_on("a") for _ in range(2)), return_exceptions=True
    )
    assert [type(failure) for failure in failures] == [UnavailableError] * 2
    ground.monitors["a"].accept()
    await ground.look_on("a")


async def test_who_joins_a_connection_that_has_just_ended_sees_the_end(ground: Ground) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    connection = conmon_socket.MonitorConnection(ours, lambda: None)
    theirs.close()
    await connection.closed.wait()
    assert await connection.join().read() is None
