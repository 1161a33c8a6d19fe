# SPDX-License-Identifier: Apache-2.0
"""Sessions behind one-time URLs, and the tokens that name them for a minute."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from criagent.base.errors import ExhaustedError

_LIFE_S = 60.0
_MOST = 1000
_TOKEN_BYTES = 24  # 192 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSession:
    """A command to run in a container."""

    container_id: str
    cmd: tuple[str, ...]
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSession:
    """A container to attach to."""

    container_id: str
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForwardSession:
    """A pod to forward ports of; `ports` may be empty, clients name them again."""

    sandbox_id: str
    ports: tuple[int, ...]


Session = ExecSession | AttachSession | PortForwardSession


class Tokens:
    """Sessions that wait for their client, each for one minute and one use."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self._now = now or asyncio.get_running_loop().time
        self._waiting: dict[str, tuple[float, Session]] = {}

    def put(self, session: Session) -> str:
        """A token for `session`. Raises ExhaustedError when too many sessions wait."""
        self._drop_old()
        if len(self._waiting) >= _MOST:
            raise ExhaustedError(
                f"{_MOST} streaming sessions are already waiting for their clients; try again"
            )
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._waiting[token] = (self._now() + _LIFE_S, session)
        return token

    def take(self, token: str) -> Session | None:
        """The session of `token`, which becomes invalid; None for an unknown, used or expired
        token.
        """
        self._drop_old()
        found = self._waiting.pop(token, None)
        return None if found is None else found[1]

    def _drop_old(self) -> None:
        now = self._now()
        for token, (until, _) in list(self._waiting.items()):
            if until > now:
                break  # in the order of creation
            del self._waiting[token]
