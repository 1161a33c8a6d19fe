# SPDX-License-Identifier: Apache-2.0
"""conmon: the process that holds a container's stdio, writes its log and records its exit code.

Started with `--sync` it stays a child of the daemon until a restart; its reply on the sync pipe
carries the pid of the container's init, or the OCI runtime's error message (docs/conmon.md).
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from criagent.base.aio import alongside, finish, run_in
from criagent.base.errors import AgentError, ExhaustedError, InvalidRequestError, TimedOutError
from criagent.kernel import cgroupfs
from criagent.kernel.devices import restore_null
from criagent.kernel.process import alive, process_ref
from criagent.model.common import ProcessRef
from criagent.model.container import Container
from criagent.process.child import Child, Options, Pipes, spawn
from criagent.process.pipe_ends import PipeReader, up_to
from criagent.runtime.node.cgroup_names import CgroupDriver, check_placement
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import IGNORE_CGROUPS, OciRuntime, last_line

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_REPLY_LIMIT = 64 << 10
_LOG_MODE = 0o640  # as containerd's; the same after a rotation (`reopen_log.py`)
_UNUSABLE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}  # names of logs
_KEPT_VARIABLES = ("PATH", "XDG_RUNTIME_DIR")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Monitored:
    """A created container: its monitor (a child), its init and the cgroup where init lives."""

    child: Child
    monitor: ProcessRef
    init: ProcessRef
    cgroup: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """What a container's processes are restored from: CRIU's images, and the HOME with its options
    (`.criu/default.conf`).
    """

    images: Path
    home: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conmon:
    """Starts monitors."""

    program: Path
    paths: RuntimePaths
    limit_s: float
    cgroup: str  # cgroup of monitors, "" = the daemon's
    fs: Executor
    journald: bool = False  # containers write to the node's journal, too

    async def create(
        self, container: Container, runtime: OciRuntime, restore: Restore | None = None
    ) -> Monitored:
        """Create the container of the bundle under a new monitor; or `restore` it, running.

        Raises AgentError with the runtime's message, WrongStateError when init is outside of the
        row's cgroup, TimedOutError; the monitor is dead then, but the runtime may have left state
        and init (`OciRuntime.delete`).
        """
        try:
            with Pipes() as pipes:
                return await self._create(container, runtime, pipes, restore)
        except TimeoutError:
            verb = "create" if restore is None else "restore"
            raise TimedOutError(
                f"{runtime.name} {verb} took over {self._limit_s(runtime):.0f} s; if the program "
                f"only is slow, raise runtime.handlers.{runtime.name}.create_timeout_s"
            ) from None
        finally:
            # conmon opens it as the container's input, and crun 1.21 gives input to the container's
            # user, who could close the node's /dev/null to all.
            restore_null()

    async def _create(
        self, container: Container, runtime: OciRuntime, pipes: Pipes, restore: Restore | None
    ) -> Monitored:
        errors = pipes.errors(up_to(_REPLY_LIMIT))
        reply, sync_fd = pipes.numbered(up_to(_REPLY_LIMIT))
        if IGNORE_CGROUPS in runtime.given:
            cgroupfs.make(container.cgroup)
        environment = {k: os.environ[k] for k in _KEPT_VARIABLES if k in os.environ}
        environment["_OCI_SYNCPIPE"] = str(sync_fd)
        environment["TMPDIR"] = str(self.paths.attach)  # short enough for a socket's path
        command = self._command(container, runtime)
        if restore is not None:
            environment["HOME"] = str(restore.home)
            command += ["--restore", restore.images, "--runtime-opt", "--file-locks"]
        child = self._started(container, command, environment, pipes)
        try:
            async with asyncio.timeout(self._limit_s(runtime)), self._moved(child):
                line = await reply.line()
            return await self._created(child, line, errors, container)
        except BaseException:
            # A runtime that is still dying could make the container's cgroup after its removal.
            await finish(child.end_group())
            raise

    def _limit_s(self, runtime: OciRuntime) -> float:
        return runtime.create_timeout_s or self.limit_s

    def _started(
        self,
        container: Container,
        command: list[str | Path],
        environment: dict[str, str],
        pipes: Pipes,
    ) -> Child:
        options = Options(env=environment, cwd=self.paths.container(container.id), new_session=True)
        try:
            return spawn(command, pipes, options)
        except OSError as exc:
            raise AgentError(
                f"{exc.filename or self.program} cannot be executed: {exc.strerror}; install conmon"
            ) from exc

    @asynccontextmanager
    async def _moved(self, child: Child) -> AsyncIterator[None]:
        """Move the monitor while the block runs: the kernel may take milliseconds for it."""
        if not self.cgroup:
            yield
            return
        async with alongside(run_in(self.fs, self._move, child.pid)) as moving:
            try:
                yield
            finally:
                await moving

    def _move(self, pid: int) -> None:
        try:
            try:
                cgroupfs.join(self.cgroup, pid)
            except FileNotFoundError:  # the unit was restarted while no monitor lived in it
                cgroupfs.directory(self.cgroup).mkdir(exist_ok=True)
                cgroupfs.join(self.cgroup, pid)
        except ProcessLookupError:
            pass  # already dead, as its reply will say
        except OSError as exc:
            log.warning("monitor_not_moved", cgroup=self.cgroup, error=str(exc))

    async def _created(
        self, child: Child, line: bytes | None, errors: PipeReader, container: Container
    ) -> Monitored:
        if line is None:
            await child.end()
            problem = last_line(errors.taken().decode(errors="replace"))
            raise AgentError(f"conmon died at its start: {problem}")
        answer = json.loads(line.decode(errors="replace"))
        pid = answer.get("data", answer.get("pid", -1))
        if pid <= 0:
            raise AgentError(last_line(answer.get("message", "")))
        init, monitor = process_ref(pid), process_ref(child.pid)
        cgroup = _cgroup_of(init)
        if init is None or monitor is None or cgroup is None:
            raise AgentError("the container's init died before it was started")
        check_placement(cgroup, container.cgroup, container.handler)
        return Monitored(child=child, monitor=monitor, init=init, cgroup=cgroup)

    def _command(self, container: Container, runtime: OciRuntime) -> list[str | Path]:
        bundle = self.paths.container(container.id)
        program, *arguments = runtime.create_argv(container.cgroup)
        command: list[str | Path] = [
            *(self.program, "--sync", "--api-version", "1"),
            *("--cid", container.id, "--cuuid", container.id),
            *("--name", container.spec.metadata.name, "--runtime", program),
            *("--bundle", bundle, "--container-pidfile", bundle / "pidfile"),
            *("--exit-dir", self.paths.exits, "--persist-dir", bundle),
            *("--log-level", "error", "--no-sync-log", "--full-attach"),
            *(part for log in self._logs(container) for part in ("--log-path", log)),
        ]
        for argument in arguments:
            command += ["--runtime-arg", argument]
        if runtime.driver is CgroupDriver.SYSTEMD:
            command.append("--systemd-cgroup")
        if container.spec.tty:
            command.append("--terminal")
        if container.spec.stdin:
            command.append("--stdin")
            if not container.spec.stdin_once:
                command.append("--leave-stdin-open")
        return command

    def _logs(self, container: Container) -> list[str]:
        """Where the output goes (man 8 conmon, --log-path)."""
        logs = [f"k8s-file:{container.log_path}"] if container.log_path else []
        if self.journald:
            logs.append("journald:")
        return logs or ["none:"]


def make_log(log: Path) -> None:
    """Create a container's log, readable by its group, and the directories above it; synchronous.

    Before 2.1.13 conmon would create it with another mode, and follow a symlink that a pod with the
    node's /var/log left under the name. An existing regular file stays as it is. Raises
    InvalidRequestError for anything else there, ExhaustedError, AgentError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # so no symlink is followed
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(log, flags, _LOG_MODE)
        except FileExistsError:
            regular = stat.S_ISREG(log.lstat().st_mode)
        else:
            regular = True
            os.fchmod(fd, _LOG_MODE)  # the umask does not apply
            os.close(fd)
    except OSError as exc:
        problem = f"log {str(log)[:500]!r} cannot be created: {exc.strerror}"
        kind: type[AgentError] = (
            ExhaustedError if exc.errno in {errno.ENOSPC, errno.EDQUOT} else AgentError
        )
        if exc.errno in _UNUSABLE:
            kind = InvalidRequestError
        raise kind(problem) from None
    if not regular:
        raise InvalidRequestError(
            f"log {str(log)[:500]!r} exists and is not a regular file; remove it, or set "
            "another log_path"
        )


def _cgroup_of(init: ProcessRef | None) -> str | None:
    """The cgroup of a process; None when it is dead."""
    if init is None:
        return None
    try:
        cgroup = cgroupfs.of_process(init.pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return cgroup if alive(init) else None  # the pid may have been reused meanwhile


def monitors_cgroup() -> str:
    """Where monitors live when the daemon is a service: below the unit `NAME-monitors.service`,
    which stays untouched when the daemon's unit is stopped or killed. "" elsewhere.
    """
    try:
        name, service, _ = cgroupfs.of_process(os.getpid()).rpartition(".service")
        if not service:
            return ""
        unit = f"{name}-monitors.service"
        if not cgroupfs.directory(unit).is_dir():
            log.warning(
                "monitors_share_daemon_unit",
                reason=f"{unit} does not run: install deploy/criagent-monitors.service, or "
                "`systemctl kill` of the daemon kills the containers",
            )
            return ""
        cgroupfs.make(f"{unit}/monitors")
    except OSError as exc:
        log.warning("monitors_share_daemon_unit", reason=str(exc))
        return ""
    return f"{unit}/monitors"


def running_monitors(exits: Path) -> dict[str, ProcessRef]:
    """Every conmon of this agent by container id, from /proc; for recovery."""
    found = {}
    mark = str(exits).encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:
                argv = file.read().split(b"\0")
        except OSError:
            continue
        if b"--exit-dir" not in argv or mark not in argv or b"--cid" not in argv:
            continue
        ref = process_ref(int(name))
        if ref is not None:
            found[argv[argv.index(b"--cid") + 1].decode()] = ref
    return found
