# SPDX-License-Identifier: Apache-2.0
"""`criagent reset`: everything that the agent made on this node, removed.

    pods and containers ─▶ layers ─▶ rules, bridge, profile ─▶ mounts, directories

Pods are removed by the verbs that serve the kubelet, so that CNI plugins and NRI-made objects are
given back in the same way. Without a readable database what runs is found by name and cgroup
(`runtime.recovery.unknown_containers`). Each step is idempotent: a reset that was killed is run
again. Configuration, the kubelet's logs and volumes, and sysctls stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import AgentError, CorruptError
from criagent.config.sections import Config
from criagent.daemon import reset_node
from criagent.daemon.reset_node import Tell
from criagent.daemon.root_lock import locked
from criagent.daemon.wiring import agent as wiring
from criagent.daemon.wiring.agent import Agent
from criagent.daemon.wiring.shared import Executors, Shared, Stores

_AT_ONCE = 16
_STOP_LIMIT_S = 30.0


def plan(config: Config, tell: Tell) -> int:
    """Say what `reset` would remove, and change nothing. Returns the exit status.

    Raises UnavailableError while an agent runs, OSError.
    """
    root = config.storage.root
    with contextlib.ExitStack() as stack:
        if root.exists():
            stack.enter_context(locked(root))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _tell_rows(root, scratch, tell)
        for line in reset_node.present(config):
            tell(line)
        for line in reset_node.staying(config):
            tell(line)
    return 0


def reset(config: Config, tell: Tell) -> int:
    """Remove it all. Returns 1 when something is left, which was told, 0 otherwise.

    Raises UnavailableError while an agent runs, AgentError and OSError when containers may still
    run; the directories are there then.
    """
    with locked(config.storage.root):
        faults.arm(config.debug.kill_at or None, config.debug.fail_at)
        problems = asyncio.run(_objects(config, tell))
        faults.reach("reset:objects")
        if problems:
            for problem in problems:
                tell(problem)
            tell("these are left, and with them all directories; run `criagent reset` again")
            return 1
        problems = reset_node.clear(config, tell)
    for line in (*problems, *reset_node.staying(config)):
        tell(line)
    return 1 if problems else 0


def _tell_rows(root: Path, scratch: Path, tell: Tell) -> None:
    """What a copy of the database names: opening one migrates it."""
    for file in root.glob("state.db*"):
        if file.suffix in {".db", ".db-wal"}:
            shutil.copy(file, scratch)
    if not root.exists():
        tell(f"{root} does not exist; what runs is found by its name")
        return
    if not (scratch / "state.db").exists():
        tell(f"{root} has lost its database; what runs is found by its name")
        return
    try:
        stores = Stores.open(scratch / "state.db")
    except CorruptError as exc:
        tell(f"{exc}: what runs is found by its name")
        return
    try:
        for sandbox in stores.sandboxes.all():
            of_pod = len(stores.containers.of_sandbox(sandbox.id))
            name = sandbox.spec.metadata
            tell(f"pod {name.namespace}/{name.name} with {of_pod} containers: {sandbox.id}")
        for image in stores.images.all():
            tell(f"image {(*image.repo_tags, *image.repo_digests, image.id)[0]}")
    finally:
        stores.db.close()


def _open(root: Path, tell: Tell) -> Stores:
    """The tables; a database that cannot be read is put aside."""
    try:
        return Stores.open(root / "state.db")
    except CorruptError as exc:
        tell(f"{exc}: what runs is found by its name")
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (root / name).rename(root / f"{name}.unreadable")
    return Stores.open(root / "state.db")


async def _objects(config: Config, tell: Tell) -> list[str]:
    """Remove pods, containers and layers; returns what could not be removed."""
    executors = Executors.start()
    try:
        stores = await run_in(executors.fs, _open, config.storage.root, tell)
        try:
            shared = Shared.of(config, stores, executors)
            agent = await wiring.build(shared)
            try:
                return await _removal(agent, tell)
            finally:
                await agent.stop(_STOP_LIMIT_S)
        finally:
            stores.db.close()
    finally:
        executors.shutdown()


async def _removal(agent: Agent, tell: Tell) -> list[str]:
    stores = agent.shared.stores
    await agent.image.images.prepare()
    if any(not sandbox.released_at_ns for sandbox in stores.sandboxes.all()):
        try:
            await agent.background.networks.start()
        except AgentError as exc:
            tell(f"{exc}: pods are taken off the network without it")
    await agent.recovery.run()
    gate = asyncio.Semaphore(_AT_ONCE)
    remove = agent.backend.sandboxes.remove
    problems = await asyncio.gather(
        *(
            _one(gate, f"pod {sandbox.id}", partial(remove, sandbox.id))
            for sandbox in stores.sandboxes.all()
        )
    )
    left = [problem for problem in problems if problem]
    tell(f"{len(problems) - len(left)} pods removed")
    if left:
        return left
    count = 0
    for part in agent.image.drivers.all():
        layers = sorted(part.store.all(), key=lambda one: one.number, reverse=True)
        for layer in layers:
            await part.remove(layer.key)
        await part.sweep()
        count += len(layers)
    tell(f"{len(stores.images.all())} images with {count} layers removed")
    problem = await agent.apparmor.remove()
    return [problem] if problem else []


async def _one(gate: asyncio.Semaphore, what: str, remove: Callable[[], Awaitable[None]]) -> str:
    """Why it could not be removed; "" = it was."""
    async with gate:
        try:
            await remove()
        except (AgentError, OSError) as exc:
            return f"{what}: {exc}"
    return ""
