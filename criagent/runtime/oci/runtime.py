# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime's command line (crun, runc, runsc): start, delete, state, update, exec.

`create` is called by conmon (`conmon.py`). Error texts are the runtime's own, without its log
prefix.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import structlog

from criagent.base.aio import finish
from criagent.base.errors import AgentError, TimedOutError
from criagent.kernel.memfd import sealed_copy
from criagent.process.child import Options, run
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.handlers import no_longer_configured
from criagent.runtime.node.own_cgroup import within
from criagent.runtime.node.paths import gvisor_state
from criagent.runtime.oci import exec_fifo
from criagent.runtime.oci import failed_scopes as scopes
from criagent.runtime.spec.inputs import OciObject

INNER_PID = ".inner"
IGNORE_CGROUPS = "--ignore-cgroups"  # of runsc
_LIMIT_S = 60.0
_GONE = re.compile(r"does not exist|no such (process|file or directory)|not (exist|found|running)")
_LOG_PREFIX = re.compile(
    r"^(\S+Z?:? )?(error|ERRO\S*)[: ]*|^time=\S+ level=\w+ msg=", re.IGNORECASE
)
# Part of a runtime's message: the cure.
_CURES = {
    "cannot open sd-bus": "start D-Bus (systemctl start dbus.socket), which crun needs for scopes, "
    'or set runtime.default_handler = "runc", which does not need it',
    "systemd not running on this host": 'set runtime.cgroup_driver = "auto"',
}


log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SealedProgram:
    """A runtime's program as a sealed memory file, copied again when the file on disk changes.

    crun and runc guard against a container that overwrites them (CVE-2019-5736) by copying
    themselves into such a file and executing that, at every call. Started from one they skip it,
    which saves about 1 ms per call (docs/adr/0004-sealed-runtimes.md). A program that
    looks at its `own_name`, as crun does when it is called crun-wasm, is executed by its path.
    """

    def __init__(self, path: Path, *, own_name: bool = False) -> None:
        self.path = path
        self._own_name = own_name
        self._facts: tuple[int, int, int] | None = None
        self._fd = -1

    def executable(self) -> Path:
        """A path to execute now; the file on disk itself where memory files do not work."""
        if self._own_name:
            return self.path
        try:
            facts = self.path.stat()
            seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if seen != self._facts:
                fd = sealed_copy(self.path)
                self.close()
                self._fd, self._facts = fd, seen
        except OSError:
            return self.path
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def close(self) -> None:
        """Release the copy."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._facts = -1, None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OciRuntime:
    """One handler's program with its state directory."""

    name: str
    program: SealedProgram
    type: str
    root: Path
    driver: CgroupDriver
    given: tuple[str, ...] = ()  # global arguments of the configuration
    create_timeout_s: float = 0.0  # of its create, 0 = the caller's
    exec_in_container: bool = False  # it runs in the container's cgroup while it executes commands

    @property
    def arguments(self) -> list[str]:
        """Global arguments, before every subcommand."""
        arguments = [*self.given, f"--root={self.root}"]
        if self.driver is CgroupDriver.SYSTEMD:
            arguments.append("--systemd-cgroup")
        return arguments

    def create_argv(self, cgroup: str) -> list[str | Path]:
        """The program with its global arguments, for create in the cgroup of the container.

        A runsc without cgroups of its own is put there.
        """
        argv: list[str | Path] = [self.program.executable(), *self.given]
        argv.append(f"--root={self.root}")
        return within(cgroup, argv) if IGNORE_CGROUPS in self.given else argv

    def knows(self, container_id: str) -> bool:
        """Whether it has state of the container."""
        if self.has_own_kernel:
            return any(file.exists() for file in gvisor_state(self.root, container_id))
        return (self.root / container_id).exists()

    async def start(self, container_id: str) -> None:
        """Let a created container's process run. Raises AgentError with the runtime's message."""
        plain = self.type == "crun" and not self.given
        if plain and exec_fifo.release(self.root / container_id):
            return
        await self._run("start", container_id)

    async def delete(self, container_id: str) -> None:
        """Kill what lives and forget the container; fine when it is unknown."""
        if not self.knows(container_id):
            await scopes.forget([container_id])
            return
        try:
            await self._run("delete", "--force", container_id)
        except AgentError as exc:
            if not _GONE.search(str(exc)):
                raise
        if self.has_own_kernel:  # a create that was killed leaves files that delete does not know
            for file in gvisor_state(self.root, container_id):
                file.unlink(missing_ok=True)

    async def status(self, container_id: str) -> str:
        """ "created", "running", "stopped" or "" for unknown."""
        try:
            output = await self._run("state", container_id)
            state = json.loads(output)
            status = str(state["status"])
        except (AgentError, ValueError, KeyError):
            return ""
        if status == "created" and self.type == "crun":
            released = exec_fifo.was_released(self.root / container_id, int(state["pid"]))
            return "running" if released else status
        return status

    async def update(self, container_id: str, resources: OciObject) -> None:
        """Change limits (OCI LinuxResources)."""
        await self._run("update", "--resources", "-", container_id, stdin=json.dumps(resources))

    async def run_detached(self, container_id: str, bundle: Path, pid_file: Path) -> int:
        """Create and start a container without a monitor; returns the pid of its process."""
        await self._run(
            *("run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)),
            container_id,
            limit_s=self.create_timeout_s or _LIMIT_S,
        )
        return int(pid_file.read_text())

    async def checkpoint(self, container_id: str, images: Path, work: Path, home: Path) -> None:
        """Save the processes of a container below `images`, CRIU's log and statistics below `work`,
        with CRIU's further options below `home`; the container keeps running.

        It is never interrupted, whatever becomes of the caller: CRIU has put code of its own into
        the processes and has to take it out again. Raises AgentError with the runtime's message.
        """
        argv: list[str | Path] = [
            self.program.executable(),
            *(*self.arguments, "checkpoint", "--leave-running"),
            *("--tcp-established", "--file-locks"),
            *("--image-path", images, "--work-path", work, container_id),
        ]
        options = Options(env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)})
        ended = await finish(run(argv, limit_s=None, options=options))
        if ended.status:
            raise AgentError(f"{self.name} checkpoint: {last_line(ended.errors)}")

    @property
    def has_own_kernel(self) -> bool:
        """Whether processes of a container are none of the node's, so that only the program
        reaches them; its init is the program itself, which passes signals on to the first one.
        """
        return self.type == "runsc"

    def detaches_exec(self, *, terminal: bool) -> bool:
        """Whether its exec has to detach; otherwise it takes no console socket and, that of runc,
        lasts until every holder of the command's streams has closed them.
        """
        return self.type == "runc" or (self.type == "runsc" and terminal)

    async def kill_inner(self, container_id: str, pid_file: Path) -> None:
        """Kill the command whose pid in the container's own kernel is in `pid_file`, and remove the
        file; fine when it has ended.
        """
        try:
            pid = int(pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return  # it was not started
        try:
            await self._run("kill", f"--pid={pid}", container_id, "KILL")
        except AgentError as exc:
            log.info("inner_exec_not_killed", container_id=container_id, error=str(exc))
        pid_file.unlink(missing_ok=True)

    def exec_argv(
        self,
        container_id: str,
        process: Path,
        *,
        cgroup: str,
        pid_file: Path | None,
        console: Path | None,
    ) -> list[str | Path]:
        """The command that runs the OCI process object of the file `process` in a container: in
        the cgroup of that name below init's unless it is "", detached with its pid in `pid_file`,
        with a terminal whose master goes to the socket `console`. Its pid in a kernel of the
        container's own is written beside `process`, with the ending INNER_PID.
        """
        argv: list[str | Path] = [self.program.executable(), *self.given]
        argv += [f"--root={self.root}", "exec"]
        if cgroup:
            argv += ["--cgroup", cgroup]
        if pid_file is not None:
            argv += ["--detach", "--pid-file", pid_file]
        if self.has_own_kernel:
            argv += ["--internal-pid-file", process.with_suffix(INNER_PID)]
        if console is not None:
            argv += [*([] if self.has_own_kernel else ["--tty"]), "--console-socket", console]
        return [*argv, "--process", process, container_id]

    async def _run(self, *arguments: str, stdin: str = "", limit_s: float = _LIMIT_S) -> str:
        """Output of a subcommand. Raises AgentError, TimedOutError."""
        argv: list[str | Path] = [self.program.executable(), *self.arguments, *arguments]
        try:
            ended = await run(argv, stdin=stdin.encode(), limit_s=limit_s)
        except TimeoutError:
            raise TimedOutError(
                f"{self.name} {arguments[0]} {arguments[-1]} took over {limit_s} s"
            ) from None
        if ended.status:
            number = -ended.status
            ending = f"killed by {signal.Signals(number).name}" if number > 0 else ""
            raise AgentError(f"{self.name} {arguments[0]}: {ending or last_line(ended.errors)}")
        return ended.output


class Runtimes(dict[str, OciRuntime]):
    """The configured handlers by name. What they made may outlive their configuration."""

    def __missing__(self, name: str) -> OciRuntime:
        raise no_longer_configured(name)


def last_line(text: str) -> str:
    """The last line of a runtime's stderr without time and level, with the cure if known."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else "failed with no output"
    plain = _LOG_PREFIX.sub("", last).strip().strip('"')
    cure = next((cure for sign, cure in _CURES.items() if sign in plain), "")
    return f"{plain}; {cure}" if cure else plain
