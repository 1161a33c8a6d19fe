"""The process that unpacks layers: one JSON document a line in, one a line out.

Started by `unpack.py` with an isolated interpreter; imports nothing but the standard library, the
decompressors and the few modules of this package that stand on the standard library alone. It
lives in a mount namespace of its own and keeps only the capabilities that writing files needs.

Requests: {"op": "extract", "blob", "root", "lowers", "size", "digest", "diff_id"} ·
{"op": "adopt", "root", "lowers", "implied"} · {"op": "sync", "root"} · {"op": "count", "roots"} ·
{"op": "import", "archive", "root"}, where root is the directory of the blobs.
Answers: {"progress": bytes} any number of times, then {"ok": …} or {"error", "kind"}, where kind is
"layer" (malformed), "lowers" (wants to be done through the lower layers), "full", "system", or the
name of a class in `criagent.errors`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from criagent.errors import AgentError
from criagent.image.decompress import BadLayerError, LayerStream
from criagent.image.extract import Extractor, NeedsLowersError, TooLargeError
from criagent.image.snapshots.content_count import content_count
from criagent.kernel import mount
from criagent.kernel.namespaces import CLONE_NEWNS, unshare
from criagent.kernel.paths import open_in_root
from criagent.kernel.process import keep_capabilities
from criagent.kernel.syscalls import check, libc

_KEPT = (0, 1, 2, 3, 4, 21, 27, 31)  # CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID
# SYS_ADMIN (mounts, trusted.* attributes) MKNOD SETFCAP
_PROGRESS_BYTES = 8 << 20
_SPARE = 1 << 20  # bytes of the disk that no layer may take

Json = dict[str, Any]


class _Counted:
    """A layer file that tells how much of it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._told += len(data)
        if self._told >= _PROGRESS_BYTES:
            _answer({"progress": self._told})
            self._told = 0
        return data


def main() -> None:
    """Serve requests until stdin ends."""
    unshare(CLONE_NEWNS)
    # A slave sees the host unmount things; a private copy would keep them alive.
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_SLAVE)
    keep_capabilities(_KEPT)
    os.umask(0)
    _answer({"ok": "ready"})
    for line in sys.stdin.buffer:
        _answer(_served(json.loads(line)))


def _served(request: Json) -> Json:
    try:
        return {"ok": _OPS[request["op"]](request)}
    except BadLayerError as exc:
        return {"error": str(exc), "kind": "layer"}
    except TooLargeError as exc:
        return {"error": str(exc), "kind": "full"}
    except NeedsLowersError as exc:
        return {"error": str(exc), "kind": "lowers"}
    except AgentError as exc:
        return {"error": str(exc), "kind": type(exc).__name__}
    except OSError as exc:
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        return {"error": str(exc), "kind": "full" if full else "system"}
    except RecursionError:
        return {"error": "the layer nests too deeply", "kind": "layer"}


def _extract(request: Json) -> Json:
    root, lowers = Path(request["root"]), [Path(lower) for lower in request["lowers"]]
    with open(request["blob"], "rb", buffering=0) as file:
        stream = LayerStream(_Counted(file))  # type: ignore[arg-type]
        try:
            with _merged(lowers, root) as target:
                extractor = Extractor(
                    stream, os.fsencode(target), merged=bool(lowers), limit=_free(root)
                )
                result = extractor.run()
        finally:
            stream.close()
    algorithm, _, expected = request["digest"].partition(":")
    if algorithm == "sha256" and stream.compressed.hexdigest() != expected:
        raise BadLayerError(
            f"the layer has digest sha256:{stream.compressed.hexdigest()}, want {expected}"
        )
    diff_id = f"sha256:{stream.plain.hexdigest()}"
    if diff_id != request["diff_id"]:
        raise BadLayerError(f"the layer has diff ID {diff_id}, want {request['diff_id']}")
    return {
        "used_bytes": result.used_bytes,
        "inodes": result.inodes,
        "implied": result.implied,
    }


def _adopt(request: Json) -> Json:
    """Give implied directories the owner, mode and attributes that lower layers have for them.

    Raises NeedsLowersError when a lower layer has a link or file there instead.
    """
    root = os.open(request["root"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _lower_view([Path(lower) for lower in request["lowers"]]) as view:
            below = os.open(view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for path in sorted(request["implied"], key=lambda p: p.count("/")):
                    _adopt_one(root, below, path)
            finally:
                os.close(below)
    finally:
        os.close(root)
    return {}


def _adopt_one(root: int, below: int, path: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        theirs = open_in_root(below, path, flags)
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise NeedsLowersError(f"{path!r} is no directory in the lower layers") from None
        raise
    try:
        ours = open_in_root(root, path, flags)
        try:
            facts = os.fstat(theirs)
            os.fchown(ours, facts.st_uid, facts.st_gid)
            for key in os.listxattr(theirs):
                if not key.startswith(("trusted.overlay.", "user.overlay.")):
                    os.setxattr(ours, key, os.getxattr(theirs, key))
            os.fchmod(ours, facts.st_mode & 0o7777)
            os.utime(ours, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
        finally:
            os.close(ours)
    finally:
        os.close(theirs)


def _sync(request: Json) -> Json:
    """syncfs(2) of the file system that holds `root`."""
    fd = os.open(request["root"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check(libc.syncfs(fd), "syncfs", request["root"])
    finally:
        os.close(fd)
    return {}


def _count(request: Json) -> Json:
    return {"counts": [content_count(Path(root)) for root in request["roots"]]}


def _import(request: Json) -> Json:
    """Take the blobs of an image archive; its modules are loaded by the first one."""
    from criagent.image.archive.read import read_archive
    from criagent.image.blobs import BlobFiles

    mask = os.umask(0o077)
    try:
        contents = read_archive(Path(request["archive"]), BlobFiles(Path(request["root"])))
    finally:
        os.umask(mask)
    return {
        "images": contents.images,
        "skipped": [[one.entry, one.why] for one in contents.skipped],
    }


_OPS = {
    "extract": _extract,
    "adopt": _adopt,
    "sync": _sync,
    "count": _count,
    "import": _import,
}


@contextlib.contextmanager
def _merged(lowers: list[Path], root: Path) -> Iterator[Path]:
    """`root` itself, or an overlay of it over `lowers` (topmost first)."""
    if not lowers:
        yield root
        return
    work = root.with_name("redo-work")
    work.mkdir(exist_ok=True)
    with _scratch() as target:
        mount.overlay(lowers, root, work, target)
        try:
            yield target
        finally:
            mount.umount2(target)
    shutil.rmtree(work)


@contextlib.contextmanager
def _lower_view(lowers: list[Path]) -> Iterator[Path]:
    if len(lowers) == 1:
        yield lowers[0]
        return
    with _scratch() as target:
        mount.overlay(lowers, None, None, target)
        try:
            yield target
        finally:
            mount.umount2(target)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="criagent-unpack-") as name:
        yield Path(name)


def _free(root: Path) -> int:
    facts = os.statvfs(root)
    return max(0, facts.f_bavail * facts.f_frsize - _SPARE)


def _answer(document: Json) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
