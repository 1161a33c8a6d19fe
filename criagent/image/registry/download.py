# SPDX-License-Identifier: Apache-2.0
"""Bytes of a blob from a server into its part file: resumed, and large ones in parallel ranges.

A part file holds a beginning of the blob, or, with a `.ranges` file beside it, the ranges that this
lists. Both survive a cancellation and a crash; the content is trusted only once its hash is right.
Ranges are optional in HTTP: if an answer is not the requested range, the blob is fetched in one
stream from its beginning.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import CorruptError, ExhaustedError, RegistryError
from criagent.image.blobs import BlobFiles, disk_full
from criagent.image.documents.manifest import Descriptor
from criagent.image.registry.coding import Undo
from criagent.image.registry.retry import Budget
from criagent.image.registry.transport import Answer

_STREAMS = 4  # of one blob at once
_PROGRESS = 1 << 17  # bytes after which a stream that breaks off is no failure of the server
_NEEDED_ELSEWHERE = {401, 408, 425, 429}  # client errors that say nothing of ranges
_BROKEN_BY_RANGES = {500, 501}
_CONTENT_RANGE = re.compile(r"bytes +(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")

Get = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Answer]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NoRanges(Exception):  # noqa: N818 - an answer, not a failure
    """The server does not send the requested range."""


class _TooMuchError(CorruptError):
    """The answer is longer than requested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One server's copy of a blob, which is to grow in `part`: `get` asks with more headers.

    `patient` says that there is no other server, so that transient failures are waited out.
    """

    where: str
    part: Path
    get: Get
    received: Callable[[int], None]
    budget: Callable[[], Budget]
    patient: bool


@dataclass(slots=True)
class _Span:
    """Bytes of the blob that are still to come: from `at` up to, not including, `end`."""

    at: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Download:
    """A blob and where it comes from."""

    blob: Descriptor
    source: Source

    @property
    def part(self) -> Path:
        """The file that it grows in."""
        return self.source.part

    @property
    def record(self) -> Path:
        """The ranges that are in the part."""
        return self.part.with_suffix(".ranges")

    def forget(self) -> None:
        """Drop what there is."""
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


class Downloader:
    """Fills part files and finishes them."""

    def __init__(self, files: BlobFiles, fs: Executor, *, range_bytes: int) -> None:
        self._files = files
        self._fs = fs
        self._range = range_bytes

    async def download(self, blob: Descriptor, source: Source) -> None:
        """The blob, verified and durable.

        Raises NotFoundError, RegistryError, CorruptError, and ExhaustedError before anything is
        written when the blob is larger than the free disk.
        """
        task = _Download(blob=blob, source=source)
        await run_in(self._fs, _check_room, task)
        resumed = _size(task.part) > 0
        try:
            await self._attempt(task)
        except CorruptError:
            await run_in(self._fs, task.forget)
            if not resumed:
                raise
            # What another server or an earlier crash left may be what is wrong.
            log.info("blob_restarted", digest=blob.digest, host=source.where)
            try:
                await self._attempt(task)
            except CorruptError:
                await run_in(self._fs, task.forget)
                raise

    async def _attempt(self, task: _Download) -> None:
        """Go on from what is there, verify and finish."""
        if task.blob.size > 2 * self._range:
            try:
                await self._in_ranges(task)
            except NoRanges:
                log.info("blob_without_ranges", digest=task.blob.digest, host=task.source.where)
                await run_in(self._fs, task.forget)
                await self._in_one(task)
        else:
            await self._in_one(task)
        digest, part = task.blob.parsed, task.part
        await run_in(self._fs, self._files.verify_part, digest, task.blob.size, part)
        await run_in(self._fs, self._files.finish, digest, part)
        await run_in(self._fs, task.record.unlink, True)  # noqa: FBT003 - missing_ok

    async def _in_one(self, task: _Download) -> None:
        span = _Span(min(_size(task.part), task.blob.size), task.blob.size)
        budget = task.source.budget()
        while True:
            had = span.at
            try:
                await self._stream(task, span)
                return
            except NoRanges:
                if not had:
                    raise RegistryError(
                        f"{task.source.where} answered with a range of blob {task.blob.digest} "
                        "that was not requested",
                        url=task.source.where,
                    ) from None
                span.at = 0
            except RegistryError as exc:
                await _again(task, exc, budget, received=span.at - had)

    async def _stream(self, task: _Download, span: _Span) -> None:
        """Append from the span's beginning to the end of the blob."""
        if span.at == span.end and task.part.exists():
            return
        headers = {"Range": f"bytes={span.at}-"} if span.at else {}
        async with _answered(task, headers) as answer:
            if answer.status != 206:
                span.at = 0
            elif not _is_range(answer, span, task.blob.size):
                raise NoRanges
            fd = await run_in(self._fs, _opened, task.part, span.at)
            try:
                await self._write(fd, answer, span, task)
            finally:
                os.close(fd)

    async def _in_ranges(self, task: _Download) -> None:
        """All ranges, by a fixed number of workers: a blob's stated size makes no tasks."""
        done = await run_in(self._fs, _finished, task.part, task.record)
        fd = await run_in(self._fs, _opened, task.part, None)
        starts = iter(range(0, task.blob.size, self._range))

        async def work() -> None:
            for start in starts:
                if start not in done:
                    span = _Span(start, min(start + self._range, task.blob.size))
                    await self._one_range(fd, task, span)
                    await run_in(self._fs, _record, task.record, start)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_STREAMS):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            refused, _ = failures.split(NoRanges)
            raise (refused or failures).exceptions[0] from None
        finally:
            os.close(fd)

    async def _one_range(self, fd: int, task: _Download, span: _Span) -> None:
        budget = task.source.budget()
        while True:
            had = span.at
            try:
                headers = {"Range": f"bytes={span.at}-{span.end - 1}"}
                async with _answered(task, headers) as answer:
                    if not _is_range(answer, span, task.blob.size):
                        raise NoRanges
                    await self._write(fd, answer, span, task)
                return
            except _TooMuchError:
                raise NoRanges from None
            except RegistryError as exc:
                await _again(task, exc, budget, received=span.at - had)

    async def _write(self, fd: int, answer: Answer, span: _Span, task: _Download) -> None:
        """Write the answer into `span`, which it must fill; what arrived is counted off."""
        blob, source = task.blob, task.source
        undo = None if _is_plain(answer, span) else Undo(answer.codings, source.where)
        async for chunk in answer.chunks():
            await run_in(self._fs, _write_chunk, fd, chunk, undo, span, task)
            source.received(len(chunk))
        if undo is not None:
            undo.finish()
        if span.at < span.end:
            raise RegistryError(
                f"{source.where} ended blob {blob.digest} {span.end - span.at} bytes too soon",
                method="GET",
                url=source.where,
                transient=True,
            )


async def _again(task: _Download, error: RegistryError, budget: Budget, *, received: int) -> None:
    """Return when the request may go on where it broke off; raises `error` otherwise."""
    if error.transient and received >= _PROGRESS:
        budget.progressed()
        log.info("blob_resumed", digest=task.blob.digest, error=str(error))
    elif not task.source.patient and received <= 0:
        raise error
    else:
        await budget.wait(error)


@asynccontextmanager
async def _answered(task: _Download, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
    """The answer of the source. A refusal that may be one of the range alone is NoRanges."""
    async with AsyncExitStack() as exchange:
        try:
            answer = await exchange.enter_async_context(task.source.get(headers))
        except RegistryError as exc:
            client_error = 400 <= exc.status < 500 and exc.status not in _NEEDED_ELSEWHERE
            if headers and (client_error or exc.status in _BROKEN_BY_RANGES):
                raise NoRanges from exc
            raise
        yield answer


def _is_range(answer: Answer, span: _Span, size: int) -> bool:
    """Whether the answer is the beginning, at least, of `span` of a blob of `size` bytes."""
    kind = answer.header("Content-Type").lower()
    if answer.status != 206 or answer.codings or kind.startswith("multipart/"):
        return False
    field = answer.header("Content-Range")
    if not field:  # against the standard; the length then tells the whole from the range
        return answer.length == span.end - span.at
    match = _CONTENT_RANGE.fullmatch(field.strip())
    if match is None:
        return False
    first, last = int(match[1]), int(match[2])
    fits = first == span.at and first <= last < span.end and match[3] in {"*", str(size)}
    return fits and answer.length in {None, last - first + 1}


def _is_plain(answer: Answer, span: _Span) -> bool:
    """Whether the body is the blob as it is. Stores label blobs that are gzip as encoded by it."""
    return not answer.codings or answer.length == span.end - span.at


def _check_room(task: _Download) -> None:
    """Refuse what the disk cannot hold. A stated size must not fill it before that shows."""
    disk = os.statvfs(task.part.parent)
    free = disk.f_bavail * disk.f_frsize
    held = task.part.stat().st_blocks * 512 if task.part.exists() else 0
    if task.blob.size > free + held:
        raise ExhaustedError(
            f"blob {task.blob.digest} has {task.blob.size} bytes, but only {free} are free "
            f"below {task.part.parent}; remove images or enlarge the disk"
        )


def _opened(part: Path, length: int | None) -> int:
    """A descriptor that writes the part, cut to `length` unless that is None."""
    with disk_full(part):
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if length is not None:
        os.ftruncate(fd, length)
    return fd


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


def _write_chunk(fd: int, chunk: bytes, undo: Undo | None, span: _Span, task: _Download) -> None:
    """Write what a chunk of the answer holds at the span's beginning, which moves on."""
    with disk_full(task.part):
        for piece in undo.feed(chunk) if undo is not None else (chunk,):
            if span.at + len(piece) > span.end:
                raise _TooMuchError(
                    f"{task.source.where} sent more than the {task.blob.size} bytes of blob "
                    f"{task.blob.digest}"
                )
            view = memoryview(piece)
            while view:
                done = os.pwrite(fd, view, span.at)
                view, span.at = view[done:], span.at + done


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
