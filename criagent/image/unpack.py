"""Layers into snapshots, by worker processes that stay warm for a while.

A worker does one thing at a time and is killed when its caller gives up. What a layer needs of the
ones below it (`unpack_worker.py`) is settled bottom-up once all layers of an image are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criagent.aio import finish
from criagent.child import Child, PipeReader, spawn
from criagent.errors import (
    AgentError,
    CorruptError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from criagent.image.archive.read import Contents, Skipped

_IDLE_S = 30.0  # a warm worker saves 60 ms of start-up and holds about 15 MB
_LINE_LIMIT = 64 << 20
_MAIN = """import sys
sys.path[:0] = {path!r}
from criagent.image.unpack_worker import main
main()
"""

_ERRORS = {
    kind.__name__: kind
    for kind in (CorruptError, ExhaustedError, InvalidRequestError, NotFoundError, UnsupportedError)
}

Json = dict[str, Any]


class NeedsLowers(Exception):  # noqa: N818 - an answer, not a failure
    """The layer must be written through the layers below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A layer's blob on disk with what it must turn out to be."""

    blob: Path
    size: int
    digest: str
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What a layer took on disk, and directories that only its files' paths imply."""

    used_bytes: int
    inodes: int
    implied: tuple[str, ...]


class UnpackWorkers:
    """At most `count` workers; more callers wait for their turn."""

    def __init__(self, count: int) -> None:
        self._turns = asyncio.Semaphore(count)
        self._idle: list[_Worker] = []
        self._retire: asyncio.TimerHandle | None = None

    async def extract(
        self,
        layer: LayerFile,
        root: Path,
        lowers: Sequence[Path],
        moved: Callable[[int], None],
    ) -> Unpacked:
        """Write `layer` below `root`, through an overlay of `lowers` (topmost first) when given.

        `moved` hears of bytes read. Raises CorruptError, ExhaustedError, NeedsLowers.
        """
        answer = await self._ask(
            {
                "op": "extract",
                "blob": str(layer.blob),
                "size": layer.size,
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "root": str(root),
                "lowers": [str(lower) for lower in lowers],
            },
            moved,
        )
        return Unpacked(
            used_bytes=answer["used_bytes"],
            inodes=answer["inodes"],
            implied=tuple(answer["implied"]),
        )

    async def adopt(self, root: Path, lowers: Sequence[Path], implied: Sequence[str]) -> None:
        """Give implied directories what the lower layers have for them. Raises NeedsLowers."""
        paths = [str(lower) for lower in lowers]
        request = {"op": "adopt", "root": str(root), "lowers": paths, "implied": list(implied)}
        await self._ask(request, lambda _: None)

    async def read_archive(self, archive: Path, blobs: Path) -> Contents:
        """Take the blobs of an image archive into the directory `blobs`: `archive.read`."""
        request = {"op": "import", "archive": str(archive), "root": str(blobs)}
        answer = await self._ask(request, lambda _: None)
        return Contents(answer["images"], [Skipped(*one) for one in answer["skipped"]])

    async def sync(self, root: Path) -> None:
        """Make everything written to the file system of `root` durable (man 2 syncfs)."""
        await self._ask({"op": "sync", "root": str(root)}, lambda _: None)

    async def count(self, roots: Sequence[Path]) -> list[tuple[int, int]]:
        """Names below each root, and bytes of its regular files (`content_count`)."""
        request = {"op": "count", "root": "", "roots": [str(root) for root in roots]}
        answer = await self._ask(request, lambda _: None)
        return [(names, size) for names, size in answer["counts"]]

    async def close(self) -> None:
        """End the idle workers."""
        if self._retire is not None:
            self._retire.cancel()
        workers, self._idle = self._idle, []
        for worker in workers:
            await worker.kill()

    async def _ask(self, request: Json, moved: Callable[[int], None]) -> Json:
        async with self._worker() as worker:
            answer = await worker.ask(request, moved)
        if "ok" in answer:
            result: Json = answer["ok"]
            return result
        text = answer["error"]
        match answer["kind"]:
            case "layer":
                raise CorruptError(f"layer {request.get('digest', '')}: {text}")
            case "full":
                raise ExhaustedError(f"no space left to unpack below {request['root']}: {text}")
            case "lowers":
                raise NeedsLowers(text)
            case kind if kind in _ERRORS:
                raise _ERRORS[kind](text)
        raise AgentError(f"unpacking {request.get('digest', '')} failed: {text}")

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[_Worker]:
        async with self._turns:
            worker = self._idle.pop() if self._idle else None
            if worker is not None and not worker.alive:  # the kernel may kill for memory
                worker.dismiss()
                worker = None
            worker = worker or await _Worker.start()
            try:
                yield worker
            except BaseException:
                await worker.kill()
                raise
            self._idle.append(worker)
            self._plan_retirement()

    def _plan_retirement(self) -> None:
        if self._retire is not None:
            self._retire.cancel()
        loop = asyncio.get_running_loop()
        self._retire = loop.call_later(_IDLE_S, self._retire_idle)

    def _retire_idle(self) -> None:
        workers, self._idle = self._idle, []
        for worker in workers:
            worker.dismiss()


class _Worker:
    def __init__(self, child: Child, requests: int, answers: PipeReader) -> None:
        self._child = child
        self._requests = requests
        self._answers = answers

    @classmethod
    async def start(cls) -> _Worker:
        answers, theirs = os.pipe()
        request_read, requests = os.pipe()
        # The isolated interpreter finds this package and the decompressors, and nothing else runs.
        path = [str(Path(__file__).parents[2]), *(p for p in sys.path if "site-packages" in p)]
        try:
            child = spawn(
                [sys.executable, "-I", "-S", "-c", _MAIN.format(path=path)],
                stdin=request_read,
                stdout=theirs,
                stderr=subprocess.DEVNULL if sys.stderr is None else 2,
                env={"PATH": os.defpath},
            )
        except BaseException:
            os.close(answers)
            os.close(requests)
            raise
        finally:
            os.close(theirs)
            os.close(request_read)
        worker = cls(child, requests, PipeReader(answers, limit=_LINE_LIMIT))
        try:
            await worker._read(lambda _: None)
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as the loop has heard."""
        return self._child.running

    async def ask(self, request: Json, moved: Callable[[int], None]) -> Json:
        with contextlib.suppress(BrokenPipeError):  # the end of its answers tells it
            os.write(self._requests, json.dumps(request).encode() + b"\n")
        return await self._read(moved)

    async def _read(self, moved: Callable[[int], None]) -> Json:
        while True:
            line = await self._answers.line()
            if line is None:
                status = await self._child.wait()
                raise AgentError(f"the unpack worker ended unexpectedly (status {status})")
            answer: Json = json.loads(line)
            if "progress" not in answer:
                return answer
            moved(answer["progress"])

    async def kill(self) -> None:
        self._child.kill()
        self.dismiss()

        async def reaped() -> None:
            await self._child.wait()

        await finish(reaped())

    def dismiss(self) -> None:
        """End of its requests is the end of the worker."""
        self._answers.close()
        if self._requests >= 0:
            with contextlib.suppress(OSError):
                os.close(self._requests)
            self._requests = -1
