# SPDX-License-Identifier: Apache-2.0
"""One exec, for any kind of streams: process file, cgroup, the runtime's command, its end.

crun's and runsc's exec end with the command and hand our descriptors on. runc's copies them through
pipes of its own and waits until they are closed, and it takes no console socket unless it detaches.
So a runtime of that kind detaches; the command comes to us when the runtime has ended
(`child.ExpectedOrphan`), and its exit status with it. runsc does so for terminals. Its commands run
on a kernel of their own, where only runsc can kill them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from criagent.base.errors import AgentError
from criagent.base.os_errors import about
from criagent.kernel import cgroupfs
from criagent.model.container import Container
from criagent.process.child import Child, ExpectedOrphan, Pipes, spawn
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.exec.cgroup import kill_all
from criagent.runtime.exec.leftovers import exec_name
from criagent.runtime.node.own_cgroup import within
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import INNER_PID, OciRuntime
from criagent.runtime.spec.build import process_spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of a terminal, in characters."""

    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """A terminal for a command; the OCI runtime sends its master to the socket of this path."""

    socket: Path
    size: Size | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """A command for a running container, without a cgroup of its own if `own_cgroup` is False."""

    container: Container
    cmd: Sequence[str]
    own_cgroup: bool = True
    console: Console | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlan:
    """What is written, made and executed for one command. Nothing of it is there yet."""

    argv: Sequence[str | Path]
    process_file: Path
    process: bytes  # the OCI process object that it holds
    cgroup: str  # beside init's, "" for none
    pid_file: Path | None  # where a runtime that detaches writes the command's pid
    inner_pid_file: Path | None = None  # where a runtime with kernels of its own writes the pid
    kill: Callable[[], Awaitable[None]] | None = None  # of a command that no signal reaches


class Command:
    """The command of a plan, started by the constructor with the child's ends of `pipes`.

    Process file and cgroup go when `stack` unwinds. If that is before the command's end, everything
    that it started is killed. `runtime` is the OCI runtime's process.
    """

    def __init__(self, stack: AsyncExitStack, plan: ExecPlan, pipes: Pipes) -> None:
        self._stack = stack
        self._plan = plan
        self._ended = False  # by itself: its background children may keep running
        # tmpfs and cgroupfs answer at once: a thread would cost more than the calls.
        stack.callback(plan.process_file.unlink, missing_ok=True)
        with about(plan.process_file):
            plan.process_file.write_bytes(plan.process)
        if plan.cgroup:
            stack.push_async_callback(self._leave_cgroup)
            cgroupfs.make(plan.cgroup)
        if plan.kill is not None and plan.inner_pid_file is not None:
            stack.callback(plan.inner_pid_file.unlink, missing_ok=True)
            stack.push_async_callback(self._kill, plan.kill)
        self._orphan: ExpectedOrphan | None = None
        if plan.pid_file is not None:
            stack.callback(plan.pid_file.unlink, missing_ok=True)
            self._orphan = ExpectedOrphan()
            stack.callback(self._orphan.release)
        self.runtime = spawn(plan.argv, pipes)
        stack.push_async_callback(self.runtime.end)

    @property
    def has_cgroup(self) -> bool:
        """Whether a kill reaches everything that the command started."""
        return bool(self._plan.cgroup)

    async def wait(self) -> int:
        """Exit code, 128 + number for a signal; one task may wait. Raises AgentError."""
        code = await self.runtime.wait()
        if not code and self._plan.pid_file is not None and self._orphan is not None:
            child = self._adopted(self._plan.pid_file, self._orphan)
            self._stack.push_async_callback(child.end)
            code = await child.wait()
        self._ended = True
        return code if code >= 0 else 128 - code

    def _adopted(self, pid_file: Path, orphan: ExpectedOrphan) -> Child:
        try:
            return orphan.adopt(int(pid_file.read_text()))
        except (OSError, ValueError) as failure:
            raise AgentError(
                f"the OCI runtime started the command but did not report its pid: {failure}"
            ) from failure

    async def _kill(self, kill: Callable[[], Awaitable[None]]) -> None:
        if not self._ended:
            await kill()

    async def _leave_cgroup(self) -> None:
        if self._ended:
            cgroupfs.remove(self._plan.cgroup)  # stays while background children live in it
        else:
            await kill_all(self._plan.cgroup)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlanner:
    """Plans and starts commands in running containers."""

    files: ContainerFiles
    paths: RuntimePaths
    runtimes: Mapping[str, OciRuntime]

    def start(self, stack: AsyncExitStack, request: ExecRequest, pipes: Pipes) -> Command:
        """Start the command. Raises InvalidRequestError for an invalid one, WrongStateError
        for a handler that is no longer configured, OSError.
        """
        return Command(stack, self.plan(request), pipes)

    def plan(self, request: ExecRequest) -> ExecPlan:
        """The plan of a command, under a new name. Raises as `start` does."""
        container, console = request.container, request.console
        runtime = self.runtimes[container.handler]
        process = process_spec(
            self.files.process(container.id), request.cmd, tty=console is not None
        )
        if console is not None and console.size is not None:
            process["consoleSize"] = dataclasses.asdict(console.size)
        name = exec_name()
        file = self.paths.container(container.id) / f"{name}.json"
        detaches = runtime.detaches_exec(terminal=console is not None)
        pid_file = file.with_suffix(".pid") if detaches else None
        own_cgroup = request.own_cgroup and bool(container.cgroup) and not runtime.has_own_kernel
        inner = file.with_suffix(INNER_PID) if runtime.has_own_kernel else None
        cgroup = f"{container.cgroup}/{name}" if own_cgroup else ""
        argv = runtime.exec_argv(
            container.id,
            file,
            cgroup=name if own_cgroup else "",
            pid_file=pid_file,
            console=None if console is None else console.socket,
        )
        if runtime.exec_in_container and container.cgroup:
            argv = within(cgroup or container.cgroup, argv)
        return ExecPlan(
            argv=argv,
            process_file=file,
            process=msgspec.json.encode(process),
            cgroup=cgroup,
            pid_file=pid_file,
            inner_pid_file=inner,
            kill=None if inner is None else partial(runtime.kill_inner, container.id, inner),
        )
