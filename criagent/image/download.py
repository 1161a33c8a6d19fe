"""Bytes of a blob from a server into its part file: resumed, and large ones in parallel ranges.

A part file holds a beginning of the blob, or, with a `.ranges` file beside it, whatever ranges that
one lists. Both survive a cancel and a crash; what they hold is only trusted once its hash is right.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from criagent.aio import run_in
from criagent.errors import CorruptError, RegistryError
from criagent.image.blobs import BlobFiles, disk_full
from criagent.image.manifest import Descriptor

if TYPE_CHECKING:
    import aiohttp

_ATTEMPTS = 5  # of one stream; each goes on where the last one broke off
_STREAMS = 4  # of one blob at once

Get = Callable[[dict[str, str]], "AbstractAsyncContextManager[aiohttp.ClientResponse]"]
Chunks = Callable[["aiohttp.ClientResponse"], AsyncIterator[bytes]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NoRanges(Exception):  # noqa: N818 - an answer, not a failure
    """The server sends the whole blob whatever range is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One server's copy of a blob: `get` asks with more headers, `chunks` reads the answer."""

    where: str
    get: Get
    chunks: Chunks
    moved: Callable[[int], None]


@dataclass(slots=True)
class _Span:
    """Bytes of the blob that are still to come: from `at` up to, not including, `end`."""

    at: int
    end: int


class Downloader:
    """Fills part files and finishes them."""

    def __init__(self, files: BlobFiles, fs: Executor, *, range_bytes: int) -> None:
        self._files = files
        self._fs = fs
        self._range = range_bytes

    async def download(self, blob: Descriptor, source: Source) -> None:
        """The blob, verified and durable. Raises RegistryError, CorruptError, ExhaustedError."""
        resumed = _size(self._files.part(blob.parsed)) > 0
        try:
            await self._attempt(blob, source)
        except CorruptError:
            await run_in(self._fs, self._forget, blob)
            if not resumed:
                raise
            # What another server or an earlier crash left may be what is wrong.
            log.info("blob_restarted", digest=blob.digest, host=source.where)
            try:
                await self._attempt(blob, source)
            except CorruptError:
                await run_in(self._fs, self._forget, blob)
                raise

    async def _attempt(self, blob: Descriptor, source: Source) -> None:
        """Go on from what is there, verify and finish."""
        if blob.size > 2 * self._range:
            try:
                await self._in_ranges(blob, source)
            except NoRanges:
                await run_in(self._fs, self._forget, blob)
                await self._in_one(blob, source)
        else:
            await self._in_one(blob, source)
        part = self._files.part(blob.parsed)
        await run_in(self._fs, self._files.verify_part, blob.parsed, blob.size, part)
        await run_in(self._fs, self._files.finish, blob.parsed, part)
        await run_in(self._fs, self._ranges(blob).unlink, True)  # noqa: FBT003 - missing_ok

    async def _in_one(self, blob: Descriptor, source: Source) -> None:
        part = self._files.part(blob.parsed)
        for attempt in range(1, _ATTEMPTS + 1):
            had = _size(part)
            try:
                await self._stream(blob, source, min(had, blob.size))
                return
            except RegistryError as exc:
                stuck = _size(part) <= had and attempt > 1
                if attempt == _ATTEMPTS or not _transient(exc) or stuck:
                    raise
                log.info("blob_resumed", digest=blob.digest, at=_size(part), error=str(exc))

    async def _stream(self, blob: Descriptor, source: Source, start: int) -> None:
        """Append from `start` to the end of the blob."""
        part = self._files.part(blob.parsed)
        if start == blob.size and part.exists():
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with source.get(headers) as response:
            if response.status != 206:
                start = 0
            with disk_full(part):
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            span = _Span(start, blob.size)
            try:
                os.ftruncate(fd, start)
                await self._write(fd, response, span, blob, source)
            finally:
                os.close(fd)

    async def _in_ranges(self, blob: Descriptor, source: Source) -> None:
        part, record = self._files.part(blob.parsed), self._ranges(blob)
        done = await run_in(self._fs, _finished, part, record)
        with disk_full(part):
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        gate = asyncio.Semaphore(_STREAMS)

        async def one(start: int) -> None:
            async with gate:
                await self._range_with_retries(fd, blob, source, start)
                await run_in(self._fs, _record, record, start)

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, blob.size, self._range):
                    if start not in done:
                        group.create_task(one(start))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            os.close(fd)

    async def _range_with_retries(
        self, fd: int, blob: Descriptor, source: Source, start: int
    ) -> None:
        span = _Span(start, min(start + self._range, blob.size))
        for attempt in range(1, _ATTEMPTS + 1):
            had = span.at
            try:
                headers = {"Range": f"bytes={span.at}-{span.end - 1}"}
                async with source.get(headers) as response:
                    if response.status != 206:
                        raise NoRanges
                    await self._write(fd, response, span, blob, source)
                return
            except RegistryError as exc:
                stuck = span.at == had and attempt > 1
                if attempt == _ATTEMPTS or not _transient(exc) or stuck:
                    raise
                log.info("range_resumed", digest=blob.digest, at=span.at, error=str(exc))

    async def _write(
        self,
        fd: int,
        response: aiohttp.ClientResponse,
        span: _Span,
        blob: Descriptor,
        source: Source,
    ) -> None:
        """Write the answer into `span`, which it must fill; what arrived is counted off."""
        part = self._files.part(blob.parsed)
        async for chunk in source.chunks(response):
            if span.at + len(chunk) > span.end:
                raise CorruptError(
                    f"{source.where} sends more than the {blob.size} bytes of blob {blob.digest}"
                )
            await run_in(self._fs, _write_at, fd, chunk, span.at, part)
            span.at += len(chunk)
            source.moved(len(chunk))
        if span.at < span.end:
            raise RegistryError(
                f"{source.where} ended blob {blob.digest} {span.end - span.at} bytes too soon",
                method="GET",
                url=source.where,
            )

    def _ranges(self, blob: Descriptor) -> Path:
        return self._files.part(blob.parsed).with_suffix(".ranges")

    def _forget(self, blob: Descriptor) -> None:
        self._files.part(blob.parsed).unlink(missing_ok=True)
        self._ranges(blob).unlink(missing_ok=True)


def _transient(error: RegistryError) -> bool:
    return error.status == 0 or error.status >= 500 or error.status == 429


def _finished(part: Path, record: Path) -> set[int]:
    """Offsets of the ranges that an earlier try completed."""
    if not part.exists() or not record.exists():
        part.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        return set()
    return {int(line) for line in record.read_text().split() if line.isdigit()}


def _record(record: Path, start: int) -> None:
    with disk_full(record), record.open("a") as file:
        file.write(f"{start}\n")


def _write_at(fd: int, chunk: bytes, offset: int, part: Path) -> None:
    with disk_full(part):
        view = memoryview(chunk)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
