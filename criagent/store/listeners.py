# SPDX-License-Identifier: Apache-2.0
"""Listeners of a store: each sees every commit, and none can harm the writer or the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from criagent.base import memory
from criagent.base.aio import FAILURES

R = TypeVar("R")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def notify(
    listeners: Iterable[Callable[[str, R | None], None]], row_id: str, row: R | None
) -> None:
    """Call each listener with the id and the new value, None when it is deleted.

    The change is already on disk, so a listener that raises is logged and counted, and the caller
    of the verb gets the verb's result.
    """
    for listener in tuple(listeners):
        try:
            listener(row_id, row)
        except (Exception, asyncio.CancelledError) as failure:
            name = getattr(listener, "__qualname__", type(listener).__name__)
            memory.end_without(failure, name)
            FAILURES["listener"] += 1
            log.exception("listener_failed", listener=name, id=row_id)
