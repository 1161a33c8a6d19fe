# SPDX-License-Identifier: Apache-2.0
"""Exits come to the row, and stops wait for them, whatever the watch lacked when it began."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from criagent.base.aio import KeyedLocks
from criagent.config.storage_section import Storage
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.image.snapshots.snapshots import Snapshots
from criagent.kernel import cgroupfs
from criagent.kernel.process import alive, process_ref
from criagent.model.common import NamespaceMode, NamespaceOptions
from criagent.model.container import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerSpec,
    ContainerState,
)
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.container.ending import ContainerEnding
from criagent.runtime.container.erasure import ContainerErasure
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.keys import Checkpoints, Endings, Starts
from criagent.runtime.container.oom import OomWatch
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.nri.door import NoPlugins
from criagent.runtime.oci.runtime import OciRuntime, Runtimes, SealedProgram
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore
from criagent.store.snapshots import SnapshotStore

LIMIT_S = 20


def named(name: str) -> ContainerSpec:
    return ContainerSpec(metadata=ContainerMetadata(name=name), image="i")


POD = "/kubepods.slice/kubepods-pod1.slice"
ID = ContainerId("a" * 64)
BOX = Sandbox(
    id=SandboxId("b" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="this",
)
ROW = Container(
    id=ID,
    sandbox_id=BOX.id,
    spec=named("c"),
    created_at_ns=1,
    boot_id="this",
    handler="crun",
    cgroup=f"{POD}/cri-{ID}.scope",
    ready_at_ns=2,
    started_at_ns=3,
)
# What conmon does for an exit: its child's code in a file, then its own end.
MONITOR = '"$@" >/dev/null & echo $!; wait $!; printf %s $? > "$0.new"; mv "$0.new" "$0"'


class Ground:
    """A watcher and a stopper over a real database, and monitors of real processes."""

    def __init__(self, top: Path) -> None:
        self.database = top / "state.db"
        self.db = Database.open(self.database)
        self.store = ContainerStore(self.db)
        self.sandboxes = SandboxStore(self.db)
        self.paths = RuntimePaths(root=top / "root", run_dir=top / "run")
        self.paths.prepare()
        self.fs = ThreadPoolExecutor(2)
        self.endings = Endings(limit_s=60)
        self.transitions = transitions = Transitions(store=self.store, locks=KeyedLocks())
        self.exits = ExitWatcher(
            store=self.store,
            transitions=transitions,
            paths=self.paths,
            oom=OomWatch(),
            starts=Starts(limit_s=60),
            clock=Clock(),
            fs=self.fs,
            boot_id="this",
        )
        self.ending = ContainerEnding(
            endings=self.endings,
            checkpoints=Checkpoints(limit_s=60),
            starts=Starts(limit_s=60),
            exits=self.exits,
            transitions=transitions,
            plugins=NoPlugins(),
            fs=self.fs,
        )
        self.stopper = ContainerStopper(store=self.store, ending=self.ending)
        self.monitors: list[asyncio.subprocess.Process] = []

    async def running(self, *command: str) -> Container:
        """A row of `command`, which runs under a monitor that nothing watches."""
        words = ["sh", "-c", MONITOR, str(self.paths.exit_file(ID)), *command]
        monitor = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        self.monitors.append(monitor)
        assert monitor.stdout is not None
        init = int(await monitor.stdout.readline())
        container = dataclasses.replace(
            ROW, monitor=process_ref(monitor.pid), init=process_ref(init)
        )
        await self.sandboxes.insert(BOX)
        await self.store.insert(container)
        return container

    def recovery(self, program: Path) -> ContainerRecovery:
        """What a restarted daemon does with the container, with an OCI runtime of `program`."""
        runtimes = self.runtimes(program)
        return ContainerRecovery(
            exits=self.exits,
            erasure=self.erasure(runtimes),
            ending=self.ending,
            transitions=self.transitions,
            runtimes=runtimes,
            paths=self.paths,
            clock=Clock(),
            fs=self.fs,
        )

    def runtimes(self, program: Path) -> Runtimes:
        """The handler crun with another program."""
        runtime = OciRuntime(
            name="crun",
            program=SealedProgram(program),
            type="crun",
            root=self.paths.runtime_root("crun"),
            driver=CgroupDriver.CGROUPFS,
        )
        return Runtimes(crun=runtime)

    def erasure(self, runtimes: Runtimes) -> ContainerErasure:
        """Takes dead containers away over these handlers."""
        driver = OverlayDriver(self.paths.root, Storage(), self.fs)
        snapshots = Snapshots(driver, SnapshotStore(self.db), self.fs)
        return ContainerErasure(
            store=self.store,
            runtimes=runtimes,
            files=ContainerFiles(
                paths=self.paths, drivers=SnapshotsByHandler(default=snapshots), fs=self.fs
            ),
        )

    def remover(self, runtimes: Runtimes) -> ContainerRemover:
        """RemoveContainer over these handlers."""
        return ContainerRemover(
            store=self.store,
            endings=self.endings,
            stopper=self.stopper,
            erasure=self.erasure(runtimes),
            plugins=NoPlugins(),
        )

    @property
    def container(self) -> Container:
        """The row as it is now."""
        return self.store.resolve(ID)

    async def until_exited(self) -> Container:
        """The row once it tells the exit."""
        changed = asyncio.Event()
        self.store.listeners.append(lambda *_: changed.set())
        async with asyncio.timeout(LIMIT_S):
            while self.container.state is not ContainerState.EXITED:
                await changed.wait()
                changed.clear()
        return self.container

    @contextmanager
    def unwritable(self) -> Iterator[None]:
        """No row of a container can be written while the block runs."""
        self._rename("containers", "away")
        yield
        self._rename("away", "containers")

    def _rename(self, old: str, new: str) -> None:
        with sqlite3.connect(self.database) as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.close()


@pytest.fixture
async def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    """Everything in a directory of its own, which also stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path / "cgroup")
    made = Ground(tmp_path)
    yield made
    await made.exits.close()
    for monitor in made.monitors:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(monitor.pid, signal.SIGKILL)
        await monitor.communicate()
    made.db.close()
    made.fs.shutdown()


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """The kernel refuses this process every new descriptor while the block runs."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def scope(kills: int = 0) -> Path:
    """The container's cgroup with a memory controller."""
    directory = cgroupfs.directory(ROW.cgroup)
    directory.mkdir(parents=True)
    (directory / "memory.events").write_text(f"oom 3\noom_kill {kills}\n")
    (directory / "memory.max").write_text("1024\n")
    return directory


async def test_an_exit_is_noticed_without_a_watch_for_memory(ground: Ground) -> None:
    container = await ground.running("sh", "-c", "exec sleep 100000")
    scope()
    with structlog.testing.capture_logs() as told, no_more_descriptors():
        ground.exits.adopt(container)
    (warning,) = [line for line in told if line["event"] == "oom_not_watched"]
    assert "fs.inotify.max_user_instances" in warning["cure"]
    assert container.init is not None
    os.kill(container.init.pid, signal.SIGTERM)
    assert (await ground.until_exited()).exit_code == 143


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("echo > $READY; exec sleep 100000", 143),
        ("trap '' TERM; echo > $READY; while :; do sleep 0.1; done", 137),
    ],
)
async def test_a_stop_ends_a_container_that_nothing_watches(
    ground: Ground, tmp_path: Path, command: str, code: int
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    container = await ground.running("sh", "-c", f"READY={ready}; {command}")
    await asyncio.to_thread(ready.read_text)
    await ground.stopper.stop(ID, 1)
    assert not alive(container.init)
    assert (ground.container.state, ground.container.exit_code) == (ContainerState.EXITED, code)


async def test_a_recovery_that_takes_too_long_watches_the_container_all_the_same(
    ground: Ground, tmp_path: Path
) -> None:
    program = tmp_path / "crun"
    program.write_text("#!/bin/sh\nexec sleep 100000\n")
    program.chmod(0o755)
    container = dataclasses.replace(await ground.running("sleep", "100000"), started_at_ns=0)
    await ground.store.update(container)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await ground.recovery(program).recover(container)
    assert container.init is not None
    os.kill(container.init.pid, signal.SIGTERM)
    assert (await ground.until_exited()).exit_code == 143


async def test_an_exit_that_could_not_be_written_is_written_later(ground: Ground) -> None:
    container = await ground.running("sh", "-c", "exit 7")
    with ground.unwritable():
        with pytest.raises(sqlite3.OperationalError):
            await ground.exits.exited(container)
        assert ground.container.state is ContainerState.RUNNING
    assert (await ground.until_exited()).exit_code == 7


async def test_a_stop_tells_that_the_exit_cannot_be_written(ground: Ground) -> None:
    container = await ground.running("sleep", "100000")
    ground.exits.adopt(container)
    with ground.unwritable(), pytest.raises(sqlite3.OperationalError):
        await ground.stopper.stop(ID, 0)
    assert not alive(container.init)
    await ground.stopper.stop(ID, 10)
    assert (ground.container.state, ground.container.exit_code) == (ContainerState.EXITED, 137)


@pytest.mark.parametrize(
    ("cgroup", "code", "reason"),
    [
        ("is gone", 137, "OOMKilled"),
        ("is gone", 1, "Error"),
        ("tells of no kill", 137, "Error"),
        ("tells of no kill", 1, "Error"),
        ("tells of a kill", 1, "OOMKilled"),
    ],
)
async def test_the_monitors_word_counts_only_where_nobody_else_could_look(
    ground: Ground, cgroup: str, code: int, reason: str
) -> None:
    """conmon leaves its file also when the kernel only ran short and killed nobody."""
    container = await ground.running("sh", "-c", f"exit {code}")
    if cgroup != "is gone":
        scope(kills=int(cgroup == "tells of a kill"))
    ground.paths.container(ID).mkdir()
    ground.paths.oom_file(ID).touch()
    await ground.exits.exited(container)
    assert (ground.container.exit_code, ground.container.reason) == (code, reason)


async def test_kills_that_were_seen_are_not_forgotten_before_they_are_written(
    ground: Ground,
) -> None:
    container = await ground.running("sleep", "100000")
    directory = scope()
    ground.exits.adopt(container)
    (directory / "memory.events").write_text("oom 1\noom_kill 1\n")
    (directory.parent / "memory.events").write_text("oom 1\noom_kill 1\n")
    with ground.unwritable():
        with pytest.raises(sqlite3.OperationalError):
            await ground.stopper.stop(ID, 0)
        (directory / "memory.events").unlink()
        (directory.parent / "memory.events").unlink()
    assert (await ground.until_exited()).reason == "OOMKilled"


async def test_containers_of_one_pod_that_end_at_once_are_all_written(ground: Ground) -> None:
    containers = []
    await ground.sandboxes.insert(BOX)
    for number in range(100):
        name = ContainerId(f"{number:064x}")
        cgroup = f"{POD}/cri-{name}.scope"
        container = dataclasses.replace(ROW, id=name, spec=named(f"c{number}"), cgroup=cgroup)
        directory = cgroupfs.directory(cgroup)
        directory.mkdir(parents=True)
        (directory / "memory.events").write_text("oom 0\noom_kill 0\n")
        (directory / "memory.max").write_text("max\n")
        ground.paths.exit_file(name).write_text("0")
        await ground.store.insert(container)
        containers.append(container)
    (cgroupfs.directory(POD) / "memory.events").write_text("oom 0\noom_kill 0\n")
    await asyncio.gather(*(ground.exits.exited(container) for container in containers))
    assert {ground.store.resolve(container.id).reason for container in containers} == {"Completed"}


# Where a runtime may have left init, as rows of 0.1 have it.
FOREIGN = {
    "the daemon's": "/system.slice/criagent.service/daemon",
    "the root": "/",
    "the pod's": POD,
    "a neighbour's": f"{POD}/cri-{'c' * 64}.scope",
    "one with a longer name": f"{POD}/cri-{ID}x.scope",
    "above the namespace": f"/../cri-{ID}.scope",
}


class Stranger:
    """A cgroup that is not the container's, with a process of somebody else's."""

    def __init__(self, cgroup: str) -> None:
        self.directory = cgroupfs.directory(cgroup)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "cgroup.kill").write_text("untouched")
        (self.directory / "child").mkdir()

    @property
    def harmed(self) -> bool:
        """Whether it was killed, or a cgroup of it removed."""
        unkilled = (self.directory / "cgroup.kill").read_text() == "untouched"
        return not unkilled or not (self.directory / "child").exists()


@pytest.mark.parametrize("cgroup", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("pid", [NamespaceMode.CONTAINER, NamespaceMode.POD])
async def test_stop_exit_and_removal_leave_a_cgroup_alone_that_is_not_the_containers(
    ground: Ground, cgroup: str, pid: NamespaceMode
) -> None:
    container = await ground.running("sleep", "100000")
    stranger = Stranger(cgroup)
    security = dataclasses.replace(container.spec.security, namespaces=NamespaceOptions(pid=pid))
    spec = dataclasses.replace(container.spec, security=security)
    await ground.store.update(dataclasses.replace(container, cgroup=cgroup, spec=spec))
    await ground.stopper.stop(ID, 0)
    assert ground.container.exit_code == 137
    await ground.remover(ground.runtimes(Path("/bin/true"))).remove(ID)
    assert ground.store.get(ID) is None
    assert not stranger.harmed


@pytest.mark.parametrize("cgroup", FOREIGN.values(), ids=FOREIGN)
async def test_the_loss_of_a_monitor_kills_init_and_no_foreign_cgroup(
    ground: Ground, cgroup: str
) -> None:
    container = await ground.running("sleep", "100000")
    stranger = Stranger(cgroup)
    await ground.store.update(container := dataclasses.replace(container, cgroup=cgroup))
    ground.exits.adopt(container)
    assert container.monitor is not None
    os.kill(container.monitor.pid, signal.SIGKILL)
    assert (await ground.until_exited()).reason == "ContainerMonitorLost"
    assert not stranger.harmed


@pytest.mark.parametrize("cgroup", FOREIGN.values(), ids=FOREIGN)
async def test_a_recovered_row_of_an_older_version_forgets_a_foreign_cgroup(
    ground: Ground, cgroup: str
) -> None:
    container = await ground.running("sleep", "100000")
    stranger = Stranger(cgroup)
    await ground.store.update(container := dataclasses.replace(container, cgroup=cgroup))
    ground.paths.container(ID).mkdir()
    leftover = ground.paths.container(ID) / "exec-1.mount.json"
    leftover.touch()
    await ground.recovery(Path("/bin/true")).recover(container)
    assert ground.container.cgroup == ""
    assert not leftover.exists()
    assert not list(cgroupfs.ROOT.glob("exec-*"))
    await ground.stopper.stop(ID, 0)
    assert not stranger.harmed


@pytest.mark.parametrize("cgroup", FOREIGN.values(), ids=FOREIGN)
async def test_the_undo_of_a_creation_leaves_a_foreign_cgroup_alone(
    ground: Ground, cgroup: str
) -> None:
    container = await ground.running("sleep", "100000")
    stranger = Stranger(cgroup)
    await ground.store.update(
        container := dataclasses.replace(container, cgroup=cgroup, ready_at_ns=0)
    )
    await ground.recovery(Path("/bin/true")).recover(container)
    assert ground.store.get(ID) is None
    assert not stranger.harmed


@pytest.mark.parametrize("cgroup", ["", "/", "//", "/a/..", "..", "/a/../../b", "."])
def test_the_root_of_all_cgroups_is_neither_killed_nor_removed(cgroup: str) -> None:
    for call in (cgroupfs.kill, cgroupfs.remove):
        with pytest.raises(ValueError, match="not a cgroup below"):
            call(cgroup)


async def test_an_exit_is_logged_without_the_call_that_began_the_watch(ground: Ground) -> None:
    container = await ground.running("sleep", "100000")
    bound: list[dict[str, object]] = []

    def note(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        bound.append({**structlog.contextvars.get_contextvars(), **event})
        return event

    structlog.configure(processors=[note, structlog.processors.JSONRenderer()])
    try:
        with structlog.contextvars.bound_contextvars(rpc="CreateContainer"):
            ground.exits.adopt(container)
        await ground.stopper.stop(ID, 0)
    finally:
        structlog.reset_defaults()
    (exited,) = [line for line in bound if line["event"] == "container_exited"]
    assert "rpc" not in exited
