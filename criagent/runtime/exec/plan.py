"""One exec, for any kind of streams: process file, cgroup, the runtime's command, its end.

crun's exec ends with the command and passes our descriptors on. runc's copies them through its own
pipes, waits until those are closed, and takes no console socket unless it detaches. So such a
runtime is told to detach; the command becomes our child when the runtime has ended
(`child.ExpectedOrphan`), and we reap its exit status.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from criagent.base.errors import AgentError
from criagent.model.container import Container
from criagent.process.child import Child, ExpectedOrphan, killed_on_exit, spawn
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.exec.cgroup import Tree, exec_cgroup
from criagent.runtime.exec.leftovers import exec_name
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import OciRuntime
from criagent.runtime.spec.build import process_spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of a terminal, in characters."""

    width: int
    height: int


class Command:
    """A running command in a container; `runtime` is the OCI runtime's process that starts it."""

    def __init__(
        self,
        stack: AsyncExitStack,
        runtime: Child,
        tree: Tree,
        pid_file: Path | None,
        orphan: ExpectedOrphan | None,
    ) -> None:
        self.runtime = runtime
        self._stack = stack
        self._tree = tree
        self._pid_file = pid_file
        self._orphan = orphan

    async def wait(self) -> int:
        """Exit code, 128 + number for a signal; one task may wait. Raises AgentError."""
        code = await self.runtime.wait()
        if not code and self._pid_file is not None and self._orphan is not None:
            child = self._adopted(self._pid_file, self._orphan)
            await self._stack.enter_async_context(killed_on_exit(child))
            code = await child.wait()
        self._tree.ended = True
        return code if code >= 0 else 128 - code

    def _adopted(self, pid_file: Path, orphan: ExpectedOrphan) -> Child:
        try:
            return orphan.adopt(int(pid_file.read_text()))
        except (OSError, ValueError) as failure:
            raise AgentError(
                f"the OCI runtime started the command but did not report its pid: {failure}"
            ) from failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlan:
    """All that is prepared for one command; it lasts as long as the stack it was created on."""

    stack: AsyncExitStack
    container: Container
    runtime: OciRuntime
    process: Path  # the OCI process object
    cgroup: str  # its name beside init's, "" for none
    tree: Tree

    async def start(
        self,
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int,
        console: Path | None = None,
    ) -> Command:
        """Start the command; the descriptors stay the caller's. With `console`, a socket's path, it
        gets a terminal whose master is sent there. When the stack unwinds before the command's
        end, all of its processes are killed.
        """
        orphan, pid_file = None, None
        if self.runtime.detaches_exec:
            pid_file = self.process.with_suffix(".pid")
            self.stack.callback(pid_file.unlink, missing_ok=True)
            orphan = ExpectedOrphan()
            self.stack.callback(orphan.release)
        argv = self.runtime.exec_argv(
            self.container.id, self.process, cgroup=self.cgroup, pid_file=pid_file, console=console
        )
        child = spawn(argv, stdin=stdin, stdout=stdout, stderr=stderr)
        await self.stack.enter_async_context(killed_on_exit(child))
        return Command(self.stack, child, self.tree, pid_file, orphan)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlanner:
    """Prepares commands for running containers."""

    files: ContainerFiles
    paths: RuntimePaths
    runtimes: Mapping[str, OciRuntime]

    async def prepare(
        self,
        stack: AsyncExitStack,
        container: Container,
        cmd: Sequence[str],
        *,
        own_cgroup: bool = True,
        tty: bool = False,
        size: Size | None = None,
    ) -> ExecPlan:
        """Write the process file and create the cgroup; both are removed when `stack` unwinds.

        Raises InvalidRequestError for an invalid command, WrongStateError for a handler that is no
        longer configured.
        """
        runtime = self.runtimes[container.handler]
        process = process_spec(self.files.process(container.id), cmd, tty=tty)
        if tty and size is not None:
            process["consoleSize"] = {"width": size.width, "height": size.height}
        name = exec_name()
        # tmpfs and cgroupfs answer at once: a thread would cost more than the calls.
        file = self.paths.container(container.id) / f"{name}.json"
        stack.callback(file.unlink, missing_ok=True)
        file.write_bytes(msgspec.json.encode(process))
        if not own_cgroup or not container.cgroup:
            return ExecPlan(
                stack=stack,
                container=container,
                runtime=runtime,
                process=file,
                cgroup="",
                tree=Tree(),
            )
        tree = await stack.enter_async_context(exec_cgroup(f"{container.cgroup}/{name}"))
        return ExecPlan(
            stack=stack, container=container, runtime=runtime, process=file, cgroup=name, tree=tree
        )
