# SPDX-License-Identifier: Apache-2.0
"""The certificate of the streaming server, reloaded when its files change."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Certificate:
    """`context` is for the listener; each handshake gets the certificate of the last `refresh`."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises OSError, of which ssl.SSLError is one, for files that cannot be used."""
        self._cert = cert
        self._key = key
        self._stamp = self._stamped()
        self._current = self._loaded()
        self.context = self._loaded()
        self.context.sni_callback = self._choose  # called also for clients that name no host

    async def refresh(self) -> None:
        """Reload the files if they changed; the old pair stays while the new files do not match."""
        try:
            stamp = await asyncio.to_thread(self._stamped)
            if stamp == self._stamp:
                return
            self._current = await asyncio.to_thread(self._loaded)
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
        context.load_cert_chain(self._cert, self._key)
        return context
