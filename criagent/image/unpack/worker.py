# SPDX-License-Identifier: Apache-2.0
"""The process that unpacks layers, by the messages of `protocol.py`.

Started by `workers.py` with an isolated interpreter; imports only the standard library, the
decompressors and the few modules of this package that need nothing else. It lives in its own mount,
network and IPC namespaces, so without a network, and keeps only the capabilities that writing files
needs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from criagent.base.errors import AgentError
from criagent.base.os_errors import described
from criagent.image.snapshots.content_count import content_count
from criagent.image.snapshots.tree_count import TreeCount
from criagent.image.tar.decompress import BadLayerError, FileStream, LayerStream
from criagent.image.unpack.compare import compare
from criagent.image.unpack.extract import Extractor, TooLargeError
from criagent.image.unpack.layer_tree import Below
from criagent.image.unpack.protocol import (
    Answer,
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
    Settle,
    decode_request,
    encode,
)
from criagent.image.unpack.settle import settle, write_unsettled
from criagent.kernel import mount
from criagent.kernel.namespaces import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, unshare
from criagent.kernel.process import keep_capabilities

_KEPT = (0, 1, 3, 4, 21, 27, 31)  # CHOWN DAC_OVERRIDE FOWNER FSETID
# SYS_ADMIN (mounts, trusted.* attributes) MKNOD SETFCAP
_PROGRESS_BYTES = 8 << 20
_TRACEBACK = 8192  # characters, the last ones
_SPARE = 1 << 20  # bytes of the disk that no layer may take


class _Counted:
    """A layer file that says how much of it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unreported = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._unreported += len(data)
        if self._unreported >= _PROGRESS_BYTES:
            _answer(Progress(size=self._unreported))
            self._unreported = 0
        return data


def main() -> None:
    """Serve requests until stdin ends."""
    sys.excepthook = _uncaught
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC)
    # A slave sees the host unmount things; a private copy would keep them alive.
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_SLAVE)
    keep_capabilities(_KEPT)
    os.umask(0)
    _answer(Done())
    for line in sys.stdin.buffer:
        _answer(_served(decode_request(line)))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line in the form of the daemon's log, which standard error leads to."""
    text = "".join(traceback.format_exception(kind, error, trace))[-_TRACEBACK:]
    facts = {"event": "uncaught_exception", "level": "error", "where": "an unpack worker"}
    priority = "<3>" if "JOURNAL_STREAM" in os.environ else ""
    sys.stderr.write(f"{priority}{json.dumps({**facts, 'exception': text})}\n")


def _served(request: Request) -> Answer:
    try:
        return _serve(request)
    except BadLayerError as exc:
        return Failed(reason=Reason.LAYER, text=str(exc))
    except TooLargeError as exc:
        return Failed(reason=Reason.FULL, text=str(exc))
    except NeedsLowerLayers as exc:
        return Failed(reason=Reason.LOWER_LAYERS, text=str(exc))
    except AgentError as exc:
        return Failed(reason=Reason.ERROR, text=str(exc), error=type(exc).__name__)
    except OSError as exc:
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        return Failed(
            reason=Reason.FULL if full else Reason.SYSTEM,
            text=described(exc),
            errno=exc.errno or 0,
        )
    except MemoryError:
        text = "the unpack worker is out of memory"
        return Failed(reason=Reason.SYSTEM, text=text, errno=errno.ENOMEM)


def _serve(request: Request) -> Answer:
    match request:
        case Extract():
            return _extract(request)
        case Import():
            return _import(request)
        case Count():
            return Counted(counts=[content_count(Path(root)) for root in request.roots])
        case Compare():
            found = compare(Path(request.root), Path(request.expected))
            return Compared(first=found.first, total=found.total)
        case Settle():
            _settle(request)
    return Done()


def _extract(request: Extract) -> Done:
    root, lower_layers = Path(request.root), [Path(lower) for lower in request.lower_layers or ()]
    below = Below.MERGED if lower_layers or request.in_place else Below.NOTHING
    if request.lower_layers is None:
        below = Below.UNKNOWN
    with open(request.blob, "rb", buffering=0) as file:
        counted: IO[bytes] = _Counted(file)  # type: ignore[assignment] # it only reads
        # The diff ID covers all of an archive; the blob was compared with its digest on arrival.
        stream = (
            FileStream(counted) if request.path else LayerStream(counted, hash_compressed=False)
        )
        try:
            with _merged(lower_layers, root, Path(request.scratch)) as target:
                extractor = Extractor(stream, os.fsencode(target), below=below, limit=_free(root))
                if request.path:
                    size = os.fstat(file.fileno()).st_size
                    result = extractor.run_file(request.path.encode(), size)
                else:
                    result = extractor.run()
        finally:
            stream.close()
    if isinstance(stream, LayerStream):
        diff_id = f"sha256:{stream.plain.hexdigest()}"
        if diff_id != request.diff_id:
            raise BadLayerError(f"the layer has the diff ID {diff_id} instead of {request.diff_id}")
    else:
        _compare(stream.compressed.hexdigest(), request.digest)
    used_bytes, inodes = result.used_bytes, result.inodes
    if request.in_place:  # the tree has all the layers below
        count = TreeCount(root)
        count.advance(math.inf)
        used_bytes, inodes = count.usage
    unsettled = write_unsettled(Path(request.scratch), result)
    return Done(
        used_bytes=used_bytes,
        inodes=inodes,
        unsettled=unsettled,
        content=None if unsettled else result.content,
    )


def _compare(found: str, digest: str) -> None:
    """Raises BadLayerError for content that hashes to other than `digest`."""
    algorithm, _, expected = digest.partition(":")
    if algorithm == "sha256" and found != expected:
        raise BadLayerError(f"the content has the digest sha256:{found} instead of {expected}")


def _import(request: Import) -> Imported:
    """Its modules are loaded by the first archive."""
    from criagent.image.archive.read import read_archive
    from criagent.image.blobs import BlobFiles

    mask = os.umask(0o077)
    try:
        contents = read_archive(Path(request.archive), BlobFiles(Path(request.root)))
    finally:
        os.umask(mask)
    skipped = [(one.entry, one.why) for one in contents.skipped]
    return Imported(images=contents.images, skipped=skipped)


def _settle(request: Settle) -> None:
    with _lower_view([Path(lower) for lower in request.lower_layers]) as view:
        settle(Path(request.root), Path(request.scratch), view)


@contextlib.contextmanager
def _merged(lower_layers: Sequence[Path], root: Path, scratch: Path) -> Iterator[Path]:
    """`root` itself, or an overlay of it over `lower_layers` (topmost first)."""
    if not lower_layers:
        yield root
        return
    work = scratch / "redo-work"
    work.mkdir(exist_ok=True)
    with _scratch() as target:
        mount.overlay(lower_layers, root, work, target)
        try:
            yield target
        finally:
            mount.umount2(target)
    shutil.rmtree(work)


@contextlib.contextmanager
def _lower_view(lower_layers: Sequence[Path]) -> Iterator[Path]:
    if len(lower_layers) == 1:
        yield lower_layers[0]
        return
    with _scratch() as target:
        mount.overlay(lower_layers, None, None, target)
        try:
            yield target
        finally:
            mount.umount2(target)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="criagent-unpack-"))
    try:
        yield path
    finally:
        path.rmdir()  # alone: what is mounted there must never be deleted


def _free(root: Path) -> int:
    facts = os.statvfs(root)
    return max(0, facts.f_bavail * facts.f_frsize - _SPARE)


def _answer(answer: Answer) -> None:
    sys.stdout.buffer.write(encode(answer))
    sys.stdout.buffer.flush()
