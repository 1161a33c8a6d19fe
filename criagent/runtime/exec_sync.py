"""ExecSync: the OCI runtime's exec, straight from the daemon, with pipes and limits.

It runs in a sub-cgroup beside init, so that a time limit, or a caller that leaves, kills its whole
tree by cgroup.kill and nothing else. A normal exit leaves background children alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from criagent.child import Child, PipeReader, killed_on_exit, spawn
from criagent.errors import TimedOutError, WrongStateError
from criagent.model import Container, ContainerState
from criagent.runtime.container_files import ContainerFiles
from criagent.runtime.exec_cgroup import Tree, exec_cgroup
from criagent.runtime.exec_leftovers import exec_name
from criagent.runtime.oci import OciRuntime
from criagent.runtime.paths import RuntimePaths
from criagent.runtime.spec import process_spec
from criagent.store.containers import ContainerStore

# CRI: up to 16 MiB of each stream; but the kubelet takes no message over 16 MiB, so both share it.
_OUTPUT = 16 << 20
_OTHER_FIELDS = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """Exit code (128 + number for a signal) and output, cut so that it fits one message."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecSync:
    """The ExecSync verb."""

    store: ContainerStore
    files: ContainerFiles
    paths: RuntimePaths
    runtimes: Mapping[str, OciRuntime]
    own_cgroup: bool
    drain_s: float
    message_bytes: int

    async def run(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecResult:
        """Run `cmd` in a running container; `timeout_s` 0 = no limit.

        Raises NotFoundError, WrongStateError unless it runs, InvalidRequestError for an empty
        command, TimedOutError when the limit passed and everything it started was killed.
        """
        row = self.store.resolve(container_id)
        if row.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {row.id} is {row.state.name.lower()}, not running")
        name = exec_name()
        directory = self.paths.container(row.id)
        file = directory / f"{name}.json"
        cgroup = f"{row.cgroup}/{name}" if self.own_cgroup else ""

        # tmpfs and cgroupfs answer at once: a thread would cost more than the calls.
        try:
            process = self.files.process(row.id)
            file.write_bytes(msgspec.json.encode(process_spec(process, cmd, tty=False)))
            return await self._run(row, file, cgroup, timeout_s)
        finally:
            file.unlink(missing_ok=True)

    async def _run(self, row: Container, file: Path, cgroup: str, timeout_s: int) -> ExecResult:
        runtime = self.runtimes[row.handler]
        command: list[str | Path] = [runtime.program.executable(), f"--root={runtime.root}", "exec"]
        if cgroup:
            command += ["--cgroup", cgroup.rpartition("/")[2]]
        command += ["--process", file, row.id]
        async with AsyncExitStack() as stack:
            tree = Tree()
            if cgroup:
                tree = await stack.enter_async_context(exec_cgroup(cgroup))
            limit = max(min(self.message_bytes, _OUTPUT) - _OTHER_FIELDS, 0)
            output, stdout = _pipe(stack, limit)
            errors, stderr = _pipe(stack, limit)
            try:
                child = spawn(command, stdout=stdout, stderr=stderr)
            finally:
                os.close(stdout)
                os.close(stderr)
            await stack.enter_async_context(killed_on_exit(child))
            try:
                async with asyncio.timeout(timeout_s or None):
                    code = await self._ended(child, output, errors)
            except TimeoutError:
                raise TimedOutError(
                    f"command timed out after {timeout_s} s in container {row.id}; its "
                    "processes were killed"
                ) from None
            tree.ended = True
            kept_output, kept_errors = shared(len(output.data), len(errors.data), limit)
            return ExecResult(
                stdout=bytes(output.data[:kept_output]),
                stderr=bytes(errors.data[:kept_errors]),
                exit_code=code if code >= 0 else 128 - code,
            )

    async def _ended(self, child: Child, output: PipeReader, errors: PipeReader) -> int:
        code = await child.wait()
        try:
            async with asyncio.timeout(self.drain_s):
                await output.ended()
                await errors.ended()
        except TimeoutError:  # a background child holds the pipe; its output is nobody's
            pass
        return code


def shared(stdout: int, stderr: int, limit: int) -> tuple[int, int]:
    """How many bytes of each stream are kept: what fits, at least half of `limit` of each."""
    kept_errors = min(stderr, max(limit // 2, limit - stdout))
    return min(stdout, limit - kept_errors), kept_errors


def _pipe(stack: AsyncExitStack, limit: int) -> tuple[PipeReader, int]:
    read, write = os.pipe()
    reader = PipeReader(read, limit=limit)
    stack.callback(reader.close)
    return reader, write
