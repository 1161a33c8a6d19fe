# SPDX-License-Identifier: Apache-2.0
"""Containers and pods that run without a row: ended before anything of them is removed.

They remain when state.db was moved, lost or restored from a copy, and when their rows could not be
decoded. No call can name them, and the kubelet starts their pods again, so they must not run
alongside. Assumptions: monitor, cgroup, runtime state and directories are named by the id alone; an
id belongs to this agent when one of its directories or monitors has it. No other process is
touched.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, UnavailableError
from criagent.image.snapshots.mounted import elsewhere
from criagent.kernel import cgroupfs, mount, process
from criagent.model.common import ID_PATTERN, ProcessRef
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.net.pod_network import Networks
from criagent.runtime.node.cgroup_names import SCOPE_PREFIX
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import running_monitors

_END_LIMIT_S = 10.0
_POLL_S = 0.02  # the emptying of a cgroup cannot be awaited by a descriptor

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Unknown:
    """What runs, or ran, under an id without a row."""

    id: str
    monitor: ProcessRef | None
    processes: tuple[ProcessRef, ...]  # children of the monitor
    cgroups: tuple[str, ...]

    @property
    def living(self) -> bool:
        """Whether a process of it is alive."""
        return (
            process.alive(self.monitor)
            or any(process.alive(one) for one in self.processes)
            or any(cgroupfs.populated(cgroup) for cgroup in self.cgroups)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnknownContainers:
    """Ends them; runs once, before recovery sweeps."""

    has_row: Callable[[str], bool]
    networks: Networks
    paths: RuntimePaths
    fs: Executor

    async def end(self) -> None:
        """Return when no container runs without a row, and only files are left.

        Raises UnavailableError, and ends nothing, when one has its files below another
        storage.root: then that key was changed, not the database lost. AgentError when one does not
        die.
        """
        found = await run_in(self.fs, self._find)
        if not found:
            return
        await run_in(self.fs, self._check_root, found)
        for one in [one for one in found if one.living]:  # before any of them ends others
            log.error(
                "unknown_container_killed",
                id=one.id,
                monitor=one.monitor.pid if one.monitor else 0,
                cgroups=one.cgroups,
                reason="state.db has no row of it",
            )
        for one in found:
            await run_in(self.fs, _kill, one)
        await run_in(self.fs, _await_end, found)
        for one in found:
            await self._detach(one.id)
            await run_in(self.fs, self._forget, one)

    def _find(self) -> list[_Unknown]:
        monitors = running_monitors(self.paths.exits)
        ids = {name for name in (*monitors, *self._names()) if ID_PATTERN.fullmatch(name)}
        unknown = sorted(object_id for object_id in ids if not self.has_row(object_id))
        cgroups = _cgroups_of(unknown) if unknown else {}
        return [
            _Unknown(
                id=one,
                monitor=monitors.get(one),
                processes=_children(monitors.get(one)),
                cgroups=tuple(cgroups.get(one, ())),
            )
            for one in unknown
        ]

    def _names(self) -> Iterator[str]:
        """Names of this agent's directories, ids among them."""
        run = self.paths.run_dir
        for directory in (
            run / "containers",
            run / "sandboxes",
            *run.glob("runtime/*"),
            run / "exits",
        ):
            if directory.is_dir():
                yield from os.listdir(directory)

    def _check_root(self, found: list[_Unknown]) -> None:
        bases = {str(self.paths.rootfs(one.id)): one for one in found}
        for entry in mount.mountinfo():
            one = bases.get(entry.target)
            if one is None or not one.living:
                continue
            if place := elsewhere(entry, *self.paths.roots):
                raise UnavailableError(
                    f"container {one.id} runs with its files in {place}, which is not below "
                    f"storage.root ({self.paths.root}); restore storage.root, or end the "
                    "containers before you change it"
                )

    async def _detach(self, sandbox_id: str) -> None:
        """Let CNI plugins take back their resources; the built-in network cleans up by itself."""
        if self.networks.default.backend != "cni" or not self.paths.sandbox(sandbox_id).exists():
            return
        sandbox = Sandbox(
            id=SandboxId(sandbox_id),
            spec=SandboxSpec(metadata=SandboxMetadata(name="", uid="", namespace="")),
            created_at_ns=0,
            boot_id="",
            network_backend=self.networks.default.backend,
        )
        try:
            netns = self.paths.netns(sandbox_id)
            await self.networks.for_row(sandbox).detach(sandbox, netns if netns.exists() else None)
        except AgentError as exc:
            log.warning("unknown_sandbox_not_detached", sandbox_id=sandbox_id, error=str(exc))

    def _forget(self, one: _Unknown) -> None:
        for cgroup in one.cgroups:
            cgroupfs.remove(cgroup)
        self.paths.forget_state(one.id)
        self.paths.exit_file(one.id).unlink(missing_ok=True)


def _kill(one: _Unknown) -> None:
    """The monitor first: a runtime that is still creating dies with it."""
    for ref in (one.monitor, *one.processes):
        if ref is not None:
            process.send_signal(ref, signal.SIGKILL)
    for cgroup in one.cgroups:
        cgroupfs.kill(cgroup)


def _await_end(found: list[_Unknown]) -> None:
    limit = time.monotonic() + _END_LIMIT_S
    while left := [one.id for one in found if one.living]:
        if time.monotonic() >= limit:
            raise AgentError(
                f"{len(left)} containers without a row did not die within {_END_LIMIT_S:.0f} s: "
                f"{', '.join(left[:5])}; check their processes in /proc/PID/stack, or reboot"
            )
        time.sleep(_POLL_S)


def _children(monitor: ProcessRef | None) -> tuple[ProcessRef, ...]:
    if monitor is None:
        return ()
    try:
        pids = Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text().split()
    except OSError:  # it has ended, or the kernel lacks the file
        return ()
    return tuple(ref for pid in pids if (ref := process.process_ref(int(pid))) is not None)


def _cgroups_of(ids: list[str]) -> dict[str, list[str]]:
    """Cgroups with these ids' names under either driver, by id."""
    names = {name: one for one in ids for name in (one, f"{SCOPE_PREFIX}-{one}.scope")}
    found: dict[str, list[str]] = {}
    for directory, below, _ in os.walk(cgroupfs.ROOT):
        for name in [name for name in below if name in names]:
            path = Path(directory, name).relative_to(cgroupfs.ROOT)
            found.setdefault(names[name], []).append(f"/{path}")
            below.remove(name)  # its contents are removed with it
    return found
