# SPDX-License-Identifier: Apache-2.0
"""Retries: which requests, when, how often, and how long a caller waits in total.

Nothing is held while it waits: no connection, and of locks only that of the blob itself.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from criagent.base.errors import RegistryError

T = TypeVar("T")

ATTEMPTS = 5  # of one request
LONGEST_WAIT_S = 30.0  # a server that wants to be asked later than this is not waited for
TOTAL_WAIT_S = 60.0  # of one request, all waits together
_FIRST_WAIT_S = 0.5
_ATTEMPTS_OF_500 = 2  # it seldom heals, and containerd asks once more too
_SECONDS = re.compile(r"[0-9]+")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Clock:
    """Time for the registry client."""

    def monotonic(self) -> float:
        """Seconds that only run forward."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch, to compare with an HTTP date."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def retry_after_s(value: str, now: float) -> float | None:
    """Seconds that a Retry-After field asks for (RFC 9110, section 10.2.3), None for nonsense."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value[:12])  # of more digits as of twelve: for ever
    try:
        at = email.utils.parsedate_to_datetime(value)
        return max(0.0, at.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


class Budget:
    """Attempts and waits that are left for one request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made = 0
        self._waited_s = 0.0

    def progressed(self) -> None:
        """Some of the answer arrived: attempts start again, waits do not."""
        self._made = 0

    async def wait(self, error: RegistryError) -> None:
        """Wait until the request may be made again.

        Raises `error` when it is not transient, when the attempts or the time are used up, and
        when the server wants to be asked much later.
        """
        self._made += 1
        attempts = _ATTEMPTS_OF_500 if error.status == 500 else ATTEMPTS
        if not error.transient or self._made >= attempts:
            raise error
        wait_s = error.retry_after_s
        if wait_s is None:
            wait_s = _FIRST_WAIT_S * 2 ** (self._made - 1)
            wait_s *= 1 + random.random() / 4  # noqa: S311 - so that nodes do not come together
        if wait_s > LONGEST_WAIT_S or self._waited_s + wait_s > TOTAL_WAIT_S:
            raise error
        self._waited_s += wait_s
        log.info("registry_retry", error=str(error), wait_s=round(wait_s, 1), attempt=self._made)
        await self._clock.sleep(wait_s)


async def retried(ask: Callable[[], Awaitable[T]], budget: Budget) -> T:
    """The answer of `ask`, which is called again while it fails in a transient way."""
    while True:
        try:
            return await ask()
        except RegistryError as exc:
            await budget.wait(exc)
