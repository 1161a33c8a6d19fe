# SPDX-License-Identifier: Apache-2.0
"""StartContainer of a container that RestorePod has made: CRIU brings its processes back.

They come to life below a new monitor, so that logs, exit code and streams are as for any container.
Until then a container has neither monitor nor init, and what its processes come from is on disk.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import structlog

from criagent.base import faults
from criagent.base.aio import finish, run_in
from criagent.base.errors import AgentError
from criagent.kernel import mount, process
from criagent.kernel.trees import remove_tree
from criagent.model.common import ProcessRef
from criagent.model.container import Container
from criagent.process.child import ended
from criagent.runtime.checkpoint.criu import last_errors
from criagent.runtime.checkpoint.record import IMAGES
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node import own_cgroup
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import Conmon, Monitored, Restore
from criagent.runtime.oci.runtime import OciRuntime

HOME: Final = "home"
_LOG = "restore.log"  # conmon has CRIU work in the bundle
_ROOTS = re.compile(rb"/tmp/\.criu\.mntns\.\w{6}")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RestoredContainers:
    """Starts them."""

    def __init__(
        self,
        *,
        conmon: Conmon,
        runtimes: Mapping[str, OciRuntime],
        exits: ExitWatcher,
        transitions: Transitions,
        paths: RuntimePaths,
        clock: Clock,
        fs: Executor,
    ) -> None:
        self._conmon = conmon
        self._runtimes = runtimes
        self._exits = exits
        self._transitions = transitions
        self._paths = paths
        self._clock = clock
        self._fs = fs

    async def start(self, container: Container) -> None:
        """Let the processes go on; the row says RUNNING.

        After an error the container is CREATED as before. Raises AgentError with CRIU's own errors,
        TimedOutError.
        """
        directory = self._paths.restore(container.id)
        runtime = self._runtimes[container.handler]
        restore = Restore(images=directory / IMAGES, home=directory / HOME)
        bundle = self._paths.container(container.id)
        try:
            made = await self._conmon.create(container, runtime, restore)
        except BaseException as exc:
            await finish(_undo(container, runtime, self._paths, self._fs))
            reason = await run_in(self._fs, last_errors, bundle / _LOG)
            if not isinstance(exc, AgentError) or not reason:
                raise
            raise AgentError(
                f"container {container.id} cannot be restored: CRIU, called by "
                f"{container.handler}: {reason}"
            ) from exc
        faults.reach("restore-start:restored")
        await finish(self._committed(container, made))
        log.info("container_restored", container_id=container.id)

    async def _committed(self, container: Container, made: Monitored) -> None:
        started = await self._transitions.apply(
            container.id,
            started_at_ns=self._clock.now_ns(),
            monitor=made.monitor,
            init=made.init,
            cgroup=made.cgroup,
        )
        if started is not None:
            self._exits.watch_child(started, made.child)
        faults.reach("restore-start:row")
        await run_in(self._fs, _discard, self._paths.restore(container.id))


async def interrupted_restore(
    container: Container,
    monitor: ProcessRef | None,
    runtime: OciRuntime | None,
    paths: RuntimePaths,
    fs: Executor,
) -> dict[str, Any] | None:
    """What the row of a container lacks that the last daemon may have been about to restore.

    Its `monitor` and init if it runs, nothing if it has ended; None = it is yet to be restored, and
    what was done of that is undone.
    """
    if monitor is None and paths.exit_file(container.id).exists():
        return {}
    if runtime is None:
        return None
    if monitor is not None and await runtime.status(container.id) == "running":
        init = _init(paths.container(container.id) / "pidfile")
        if init is not None:
            return {"monitor": monitor, "init": init}
    if monitor is not None:
        process.send_signal(monitor, signal.SIGKILL)
        await ended(monitor)
    await _undo(container, runtime, paths, fs)
    return None


async def _undo(
    container: Container, runtime: OciRuntime, paths: RuntimePaths, fs: Executor
) -> None:
    """End what a restore has brought to life; its monitor is dead.

    Processes that CRIU was making are nobody's children that could be waited for, and large ones
    take a moment to die: they are gone when their cgroup can be removed.
    """
    own_cgroup.kill(container.cgroup, container.id)
    await runtime.delete(container.id)
    await run_in(fs, own_cgroup.end, container.cgroup, container.id)
    if runtime.knows(container.id):  # it was killed, and has mounted the root for CRIU
        mount.detach_below(runtime.root / container.id)
        paths.forget_state(container.id)
    _remove_work(paths.container(container.id))
    paths.exit_file(container.id).unlink(missing_ok=True)


def _remove_work(bundle: Path) -> None:
    """Remove what a CRIU that was killed has left: mounted cgroups, and a directory in /tmp, whose
    tmpfs reaches this mount namespace too when / is a shared mount. crun mounts the root for it in
    the bundle.
    """
    for entry in (*bundle.glob(".criu.*"), *bundle.glob("criu-root")):
        mount.detach_below(entry)
        remove_tree(entry)
    log_file = bundle / _LOG
    if log_file.exists():
        for name in set(_ROOTS.findall(log_file.read_bytes())):
            root = Path(name.decode())
            mount.detach_below(root)
            with contextlib.suppress(FileNotFoundError):  # CRIU itself removes it near its end
                root.rmdir()


def _init(pid_file: Path) -> ProcessRef | None:
    try:
        return process.process_ref(int(pid_file.read_text()))
    except (OSError, ValueError):
        return None


def _discard(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_tree(directory)
