# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens (RFC 6750) in a file, one a line."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

_LEAST = 16  # characters
_MOST_BYTES = 1 << 16
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


def read_tokens(path: Path) -> list[bytes]:
    """The tokens in the file, at least one.

    Raises OSError, and ValueError for a line that is not a token; empty lines do not count.
    """
    with path.open("rb") as file:
        lines = [line.strip() for line in file.read(_MOST_BYTES).splitlines()]
    tokens = [line for line in lines if line]
    if not tokens:
        raise ValueError("has no token")
    for number, token in enumerate(tokens, 1):
        if len(token) < _LEAST or not _TOKEN.fullmatch(token):
            raise ValueError(
                f"token {number} is not one of RFC 6750 with at least {_LEAST} characters; make "
                "one with `openssl rand -hex 32`"
            )
    return tokens


class TokenFile:
    """Checks the Authorization header of requests. Callable from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, ValueError."""
        self._path = path
        self._stamp = self._stamped()
        self._tokens = read_tokens(path)

    def allows(self, authorization: str) -> bool:
        """Whether the header carries one of the tokens; it takes as long for every wrong one."""
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode("utf-8", "replace")
        found = [hmac.compare_digest(given, known) for known in self._tokens]
        return scheme.lower() == "bearer" and any(found)

    def refresh(self) -> None:
        """Read the file again if it changed. Raises OSError, ValueError: the old tokens stay."""
        stamp = self._stamped()
        if stamp != self._stamp:
            self._tokens = read_tokens(self._path)
            self._stamp = stamp

    def _stamped(self) -> tuple[int, int, int]:
        facts = self._path.stat()
        return facts.st_ino, facts.st_size, facts.st_mtime_ns
