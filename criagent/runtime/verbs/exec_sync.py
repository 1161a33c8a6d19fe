# SPDX-License-Identifier: Apache-2.0
"""ExecSync: run a command to its end and return its output, within limits.

A time limit, or a caller that leaves, kills the command, and with `runtime.exec_cgroup` everything
that it started. A command that has ended leaves its background children alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import structlog

from criagent.base.errors import TimedOutError
from criagent.model.container import Container
from criagent.process.child import Pipes
from criagent.runtime.container.running import running
from criagent.runtime.exec.output import ExecOutput, OutputBudget
from criagent.runtime.exec.plan import ExecPlanner, ExecRequest
from criagent.runtime.pod.session_facts import SessionFacts, shown_command
from criagent.store.containers import ContainerStore

# CRI: up to 16 MiB of each stream; but the kubelet takes no message over 16 MiB: both share it.
_OUTPUT = 16 << 20
_OTHER_FIELDS = 64 << 10
_ERROR_MOST = 512  # characters of an error in the log
BUDGET = 32 << 20  # of all calls in progress together: two of the largest answers

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """Exit code (128 + number for a signal) and output, cut so that it fits one message.

    The output counts against the budget of all calls until `release` is called.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    release: Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecSync:
    """The ExecSync verb."""

    store: ContainerStore
    planner: ExecPlanner
    facts: SessionFacts
    budget: OutputBudget
    own_cgroup: bool
    drain_s: float
    message_bytes: int

    async def run(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecResult:
        """Run `cmd` in a running container; `timeout_s` 0 = no limit.

        Raises NotFoundError, WrongStateError unless it runs, InvalidRequestError for an empty
        command, TimedOutError when the command did not end in time and was killed. Reading its
        remaining output afterwards does not count.
        """
        container = running(self.store, container_id)
        limit = max(min(self.message_bytes, _OUTPUT) - _OTHER_FIELDS, 0)
        request = ExecRequest(container=container, cmd=cmd, own_cgroup=self.own_cgroup)
        began = time.monotonic()
        with Pipes() as pipes:
            output = ExecOutput(limit, self.budget, pipes)
            try:
                code = await self._run(request, timeout_s, output, pipes)
            except BaseException as failure:
                output.close()
                text = str(failure)[:_ERROR_MOST] or type(failure).__name__
                log.info("exec_sync_failed", error=text, **self._about(container, cmd, began))
                raise
            log.debug("exec_sync_ended", exit_code=code, **self._about(container, cmd, began))
            if output.dropped:
                log.info("exec_output_cut", container_id=container.id, bytes=output.dropped)
            stdout, stderr = output.taken()
        return ExecResult(stdout=stdout, stderr=stderr, exit_code=code, release=output.close)

    async def _run(
        self, request: ExecRequest, timeout_s: int, output: ExecOutput, pipes: Pipes
    ) -> int:
        async with AsyncExitStack() as stack:
            command = self.planner.start(stack, request, pipes)
            try:
                async with asyncio.timeout(timeout_s or None):
                    code = await command.wait()
            except TimeoutError:  # the stack unwinds and kills
                killed = "its processes were" if command.has_cgroup else "it was"
                raise TimedOutError(
                    f"command timed out after {timeout_s} s in container {request.container.id}; "
                    f"{killed} killed"
                ) from None
            await output.ended(self.drain_s)
            return code

    def _about(self, container: Container, cmd: Sequence[str], began: float) -> dict[str, object]:
        took_ms = round((time.monotonic() - began) * 1000, 2)
        return {**self.facts.of_container(container), "cmd": shown_command(cmd), "ms": took_ms}
