# SPDX-License-Identifier: Apache-2.0
"""No memory where no caller gets the error: the agent ends, and the service manager restarts it.

A lost callback would leave a call without an answer, or a change of state that a part of the agent
never sees, until the next start. Containers and their monitors outlive the agent.
"""

from __future__ import annotations

import os

import structlog

_SPARE = 1 << 20  # bytes for the last line of the log; never written to, so no resident memory

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_spare: bytearray | None = bytearray(_SPARE)


def end_without(error: BaseException | None, where: str) -> None:
    """End the process with status 1 if `error` says so; `where` is for the log."""
    if error is not None and is_lack(error):
        _end(error, where)


def is_lack(error: BaseException) -> bool:
    """Whether an allocation failed. The interpreter may report it as the cause of a SystemError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, SystemError) and isinstance(error.__cause__, MemoryError)
    )


def _end(error: BaseException, where: str) -> None:
    global _spare  # noqa: PLW0603 - freed when it is wanted
    _spare = None
    try:
        log.error("out_of_memory", where=where, exc_info=error)
    finally:
        os._exit(1)
