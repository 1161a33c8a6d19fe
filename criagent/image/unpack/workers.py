# SPDX-License-Identifier: Apache-2.0
"""Layers into snapshots, by worker processes that stay warm for a while.

A worker handles one request at a time and is killed when its caller gives up. What a layer needs of
the ones below it (`settle.py`) is settled bottom-up once all layers of an image are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import (
    AgentError,
    CorruptError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from criagent.base.os_errors import translated
from criagent.image.archive.contents import Contents, Skipped
from criagent.image.snapshots.content_count import ContentCount
from criagent.image.snapshots.driver import LayerPlace
from criagent.image.unpack.compare import Differences
from criagent.image.unpack.protocol import (
    Compare,
    Compared,
    Count,
    Counted,
    Done,
    Extract,
    Failed,
    Import,
    Imported,
    NeedsLowerLayers,
    Progress,
    Reason,
    Request,
    Served,
    Settle,
    decode_answer,
    encode,
)
from criagent.process.child import Options, Pipes, spawn
from criagent.process.pipe_ends import PipeWriter, up_to

__all__ = ["LayerFile", "NeedsLowerLayers", "UnpackWorkers", "Unpacked"]

_IDLE_S = 30.0  # a warm worker saves 60 ms of start-up and holds 15 to 50 MB
_ANSWER_LIMIT = 16 << 20  # bytes of answers that wait to be read
_REQUEST_LIMIT = 1 << 20  # bytes; as large as the pipe, so that no write waits for the worker
_TEXT_LIMIT = 1000  # characters of a worker's error
_KILLED = (
    "the unpack worker was killed, as the kernel does when memory is short; check dmesg, free "
    "memory on the node, or raise MemoryMax of the criagent unit"
)
_ERRORS = {
    kind.__name__: kind
    for kind in (CorruptError, ExhaustedError, InvalidRequestError, NotFoundError, UnsupportedError)
}
# mallopt(3): chunks of a layer are freed by another thread than the one that makes them. By default
# each goes back to the kernel, which has to clear every page of the next one.
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
_MAIN = """import sys
sys.path[:0] = {path!r}
from criagent.image.unpack.worker import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A layer's blob on disk with what it must turn out to be.

    With a `path` it is not an archive but that file, and has no diff ID to compare.
    """

    blob: Path
    digest: str
    diff_id: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What a layer took on disk, and whether `settle` must fit it to the layers below it.

    `content` is what `count` would find, if that is known.
    """

    used_bytes: int
    inodes: int
    unsettled: bool
    content: ContentCount | None = None


class UnpackWorkers:
    """At most `count` workers; more callers wait for their turn."""

    def __init__(self, count: int) -> None:
        self._turns = asyncio.Semaphore(count)
        self._idle: list[_Worker] = []
        self._retire: asyncio.TimerHandle | None = None

    async def extract(
        self, layer: LayerFile, place: LayerPlace, received: Callable[[int], None]
    ) -> Unpacked:
        """Write `layer` at `place`.

        Without lower layers the result may be unsettled, or NeedsLowerLayers be raised. `received`
        is called with the bytes read. Raises CorruptError, ExhaustedError.
        """
        below = place.lower_layers
        request = Extract(
            blob=str(layer.blob),
            root=str(place.root),
            scratch=str(place.scratch),
            digest=layer.digest,
            diff_id=layer.diff_id,
            path=layer.path,
            lower_layers=None if below is None else [str(lower) for lower in below],
            in_place=place.in_place,
        )
        done = await self._ask(request, f"layer {layer.digest}", received)
        assert isinstance(done, Done)
        return Unpacked(
            used_bytes=done.used_bytes,
            inodes=done.inodes,
            unsettled=done.unsettled,
            content=ContentCount(*done.content) if done.content else None,
        )

    async def settle(self, place: LayerPlace) -> None:
        """Fit an unsettled layer to the layers below it, all written. Raises NeedsLowerLayers."""
        request = Settle(
            root=str(place.root),
            scratch=str(place.scratch),
            lower_layers=[str(lower) for lower in place.lower_layers or ()],
        )
        await self._ask(request, f"the layer in {place.root}", lambda _: None)

    async def read_archive(self, archive: Path, blobs: Path) -> Contents:
        """Take the blobs of an image archive into the directory `blobs`: `archive.read`."""
        request = Import(archive=str(archive), root=str(blobs))
        done = await self._ask(request, f"the archive {archive}", lambda _: None)
        assert isinstance(done, Imported)
        return Contents(done.images, [Skipped(entry, why) for entry, why in done.skipped])

    async def count(self, roots: Sequence[Path]) -> list[ContentCount]:
        """What is below each root."""
        request = Count(root=str(roots[0]), roots=[str(root) for root in roots])
        done = await self._ask(request, "counting layers", lambda _: None)
        assert isinstance(done, Counted)
        return [ContentCount(*count) for count in done.counts]

    async def compare(self, root: Path, expected: Path) -> Differences:
        """How the tree `root` differs from `expected`, with the content of every file."""
        request = Compare(root=str(root), expected=str(expected))
        done = await self._ask(request, f"comparing {root}", lambda _: None)
        assert isinstance(done, Compared)
        return Differences(done.first, done.total)

    async def close(self) -> None:
        """End the idle workers."""
        if self._retire is not None:
            self._retire.cancel()
        workers, self._idle = self._idle, []
        for worker in workers:
            await worker.kill()

    async def _ask(self, request: Request, subject: str, received: Callable[[int], None]) -> Served:
        async with self._worker() as worker:
            answer = await worker.ask(request, received)
        if not isinstance(answer, Failed):
            return answer
        text = answer.text[:_TEXT_LIMIT]
        match answer.reason:
            case Reason.LAYER:
                raise CorruptError(f"{subject}: {text}")
            case Reason.FULL:
                raise ExhaustedError(f"{subject}: no space left below {request.root}: {text}")
            case Reason.LOWER_LAYERS:
                raise NeedsLowerLayers(text)
            case Reason.ERROR:
                raise _ERRORS.get(answer.error, AgentError)(answer.text)
            case Reason.SYSTEM:
                cause = OSError(answer.errno, f"{subject}: {text}")
                raise translated(cause) or AgentError(f"{subject}: {text}")

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


def _environment() -> dict[str, str]:
    """Nothing of the daemon's but where its standard error leads: sd-daemon(3)."""
    stream = os.environ.get("JOURNAL_STREAM")
    return {"PATH": os.defpath, **_MALLOC, **({"JOURNAL_STREAM": stream} if stream else {})}


class _Worker:
    def __init__(self, pipes: Pipes) -> None:
        """`pipes` are closed when it is killed or dismissed."""
        self._pipes = pipes
        self._requests = pipes.input(PipeWriter)
        self._requests.enlarge(_REQUEST_LIMIT)
        self._answers = pipes.output(up_to(_ANSWER_LIMIT))
        # The isolated interpreter finds this package and the decompressors, and nothing else runs.
        path = [str(Path(__file__).parents[3]), *(p for p in sys.path if "site-packages" in p)]
        self._child = spawn(
            [sys.executable, "-I", "-S", "-c", _MAIN.format(path=path)],
            pipes,
            Options(env=_environment(), inherit_stderr=sys.stderr is not None),
        )

    @classmethod
    async def start(cls) -> _Worker:
        """One that is ready for requests."""
        pipes = Pipes()
        try:
            worker = cls(pipes)
        except BaseException:
            pipes.close()
            raise
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

    async def ask(self, request: Request, received: Callable[[int], None]) -> Served | Failed:
        line = encode(request)
        if len(line) > _REQUEST_LIMIT:
            raise AgentError(f"a request of {len(line)} bytes to the unpack worker is too large")
        with contextlib.suppress(BrokenPipeError):  # the end of its answers says so
            self._requests.write(line)  # the pipe is empty: the last request was answered
        return await self._read(received)

    async def _read(self, received: Callable[[int], None]) -> Served | Failed:
        while True:
            line = await self._answers.line()
            if line is None:
                status = await self._child.wait()
                if status == -signal.SIGKILL:
                    raise ExhaustedError(_KILLED)
                raise AgentError(f"the unpack worker ended unexpectedly (status {status})")
            answer = decode_answer(line)
            if not isinstance(answer, Progress):
                return answer
            received(answer.size)

    async def kill(self) -> None:
        self._child.kill()
        self.dismiss()
        await self._child.end()

    def dismiss(self) -> None:
        """The end of its requests ends the worker."""
        self._pipes.close()
