# SPDX-License-Identifier: Apache-2.0
"""One download of a blob for all pulls that need it, as long as it makes progress.

The first pull downloads into the blob's part, which a later attempt resumes. Others wait for a
download from the same registry while bytes arrive at a fair rate. Otherwise they download into
their own parts. The first complete copy ends the other downloads, so a registry that sends slowly,
or never, delays only its own pulls.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from criagent.base.aio import alongside, run_in
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import Digest

PATIENCE_S = 5.0
_FAIR_RATE = 16 << 10  # bytes a second; a busy slow line gives each of many streams no more

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Turn:
    """One download in progress: the file that it fills, and its rate."""

    def __init__(self, part: Path, registry: str) -> None:
        self.part = part
        self.registry = registry
        self._mark_at = time.monotonic()
        self._since_mark = 0

    def counting(self, received: Callable[[int], None]) -> Callable[[int], None]:
        """`received`, called here as well with the number of bytes of the blob that arrived."""

        def heard(count: int) -> None:
            self._since_mark += count
            received(count)

        return heard

    def fair_for_s(self, patience_s: float) -> float:
        """For how many seconds it may still be waited for; 0 = it is too slow."""
        passed = time.monotonic() - self._mark_at
        if passed >= patience_s and self._since_mark >= patience_s * _FAIR_RATE:
            self._mark_at, self._since_mark, passed = time.monotonic(), 0, 0.0
        return max(0.0, patience_s - passed)


@dataclass(slots=True)
class _Wanted:
    """A blob that at least one pull wants."""

    users: int = 0
    turns: list[Turn] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self) -> None:
        """Wake those who wait for a turn to end."""
        self.changed.set()
        self.changed = asyncio.Event()


class SharedDownloads:
    """Downloads by digest, into `files`."""

    def __init__(self, files: BlobFiles, fs: Executor) -> None:
        self._files = files
        self._fs = fs
        self._patience_s = PATIENCE_S
        self._wanted: dict[Digest, _Wanted] = {}

    async def fetch(
        self,
        digest: Digest,
        registry: str,
        download: Callable[[Turn], Coroutine[object, object, None]],
    ) -> None:
        """Return when the blob is on disk, by `download` or by another pull's.

        `download` fills the turn's part, verifies it and gives it its final name. Raises what it
        raises. What it leaves behind stays only when the next try can resume it.
        """
        wanted = self._wanted.setdefault(digest, _Wanted())
        wanted.users += 1
        try:
            if await run_in(self._fs, self._files.has, digest):
                return
            await self._await_others(wanted, registry)
            if not wanted.arrived.is_set():
                await self._download(digest, wanted, registry, download)
        finally:
            wanted.users -= 1
            if not wanted.users:
                del self._wanted[digest]

    async def _await_others(self, wanted: _Wanted, registry: str) -> None:
        """Return when the blob has arrived, or no download from this registry gets on."""
        while not wanted.arrived.is_set():
            same = [turn for turn in wanted.turns if turn.registry == registry]
            left = same[-1].fair_for_s(self._patience_s) if same else 0.0
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await wanted.changed.wait()

    async def _download(
        self,
        digest: Digest,
        wanted: _Wanted,
        registry: str,
        download: Callable[[Turn], Coroutine[object, object, None]],
    ) -> None:
        shared = self._files.part(digest)
        taken = any(turn.part == shared for turn in wanted.turns)
        turn = Turn(self._files.own_part(digest) if taken else shared, registry)
        if any(other.registry == registry for other in wanted.turns):
            log.info("blob_downloaded_again", digest=str(digest), registry=registry)
        wanted.turns.append(turn)
        try:
            if await self._first(download(turn), wanted.arrived):
                wanted.arrived.set()
        finally:
            wanted.turns.remove(turn)
            wanted.change()
            if taken or wanted.arrived.is_set():
                await run_in(self._fs, self._files.discard, turn.part)

    @staticmethod
    async def _first(download: Coroutine[object, object, None], arrived: asyncio.Event) -> bool:
        """True when the download is done, False when it was ended since the blob has arrived."""
        async with alongside(download) as work, alongside(arrived.wait()) as waiting:
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not arrived.is_set():
                work.result()
                return True
            return False
