"""One run of a CNI plugin: a child process in its own session, with a time limit."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.base.aio import finish
from criagent.base.errors import AgentError, TimedOutError
from criagent.kernel.memfd import data_file
from criagent.net.cni.result import LIMIT_BYTES
from criagent.process.child import Child, PipeReader, spawn

_STDERR_BYTES = 1 << 14


async def run_plugin(
    program: Path, environment: Mapping[str, str], request: Mapping[str, Any], limit_s: float
) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of `program`, with `request` as JSON on its stdin.

    When it returns or raises, even by cancellation, the plugin has ended; after a time-out or a
    cancellation so has its whole process group. Raises TimedOutError after `limit_s`, AgentError
    when it cannot be executed or prints more than LIMIT_BYTES.
    """
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    output = PipeReader(out_read, limit=LIMIT_BYTES)
    errors = PipeReader(err_read, limit=_STDERR_BYTES)
    try:
        stdin = data_file("cni-request", json.dumps(request).encode())
        try:
            child = spawn(
                [program],
                stdin=stdin,
                stdout=out_write,
                stderr=err_write,
                env=environment,
                new_session=True,
            )
        except OSError as exc:
            raise AgentError(f"CNI plugin {program} cannot be executed: {exc.strerror}") from None
        finally:
            for fd in (stdin, out_write, err_write):
                os.close(fd)
        status = await _ended(child, program, limit_s)
        # Not until the pipes close: a daemon that the plugin started may hold them.
        output.drain()
        errors.drain()
    finally:
        output.close()
        errors.close()
    if output.dropped:
        raise AgentError(f'CNI plugin "{program.name}" printed more than {LIMIT_BYTES} bytes')
    return status, bytes(output.data), bytes(errors.data)


async def _ended(child: Child, program: Path, limit_s: float) -> int:
    try:
        async with asyncio.timeout(limit_s):
            return await child.wait()
    except TimeoutError:
        raise TimedOutError(
            f'CNI plugin "{program.name}" did not end within {limit_s:g} s and was killed'
        ) from None
    finally:
        if child.running:
            child.kill_group()
            await finish(child.wait())
