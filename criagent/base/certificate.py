# SPDX-License-Identifier: Apache-2.0
"""The certificate of a server, reloaded when its files change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import structlog

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Certificate:
    """`context` is for the listener; each handshake gets the certificate of the last `refresh`.

    `suites` are OpenSSL's names of cipher suites of TLS 1.2, none = OpenSSL's defaults.
    """

    def __init__(
        self,
        cert: Path,
        key: Path,
        *,
        min_version: Literal["1.2", "1.3"] = "1.2",
        suites: Sequence[str] = (),
    ) -> None:
        """Raises OSError, of which ssl.SSLError is one, for files that cannot be used."""
        self._cert = cert
        self._key = key
        self._min_version = _VERSIONS[min_version]
        self._suites = ":".join(suites)
        self._stamp = self._stamped()
        self._current = self._loaded()
        self.context = self._loaded()
        self.context.sni_callback = self._choose  # called also for clients that name no host

    async def refresh(self) -> None:
        """`refresh_here` in a thread."""
        await asyncio.to_thread(self.refresh_here)

    def refresh_here(self) -> None:
        """Reload the files if they changed; the old pair stays while the new files do not match.

        Callable from any thread.
        """
        try:
            stamp = self._stamped()
            if stamp == self._stamp:
                return
            self._current = self._loaded()
            self._stamp = stamp
        except OSError as exc:
            log.warning("certificate_not_renewed", cert=str(self._cert), error=str(exc))

    def _choose(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        del name
        handshake.context = self._current

    def _stamped(self) -> tuple[tuple[int, int, int], ...]:
        states = [path.stat() for path in (self._cert, self._key)]
        return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = self._min_version
        if self._suites:
            context.set_ciphers(self._suites)
        context.load_cert_chain(self._cert, self._key)
        return context
