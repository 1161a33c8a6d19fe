# SPDX-License-Identifier: Apache-2.0
"""A container's archive, unpacked for RestorePod into a directory of the agent's. Synchronous.

Read once, in one pass: its digest is compared at the end, and before that nothing of it is used.
Members are taken by exact names, and everything else that it has is passed over, so that no name
leads out of the directory (CVE-2026-53489 of containerd). Mounts, devices, annotations, logs and
image names in it decide about nothing (CVE-2024-8676 of CRI-O, CVE-2026-50195 and CVE-2026-53492 of
containerd): all of those come from the request.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from criagent.base.errors import CorruptError
from criagent.image.archive.room import Room
from criagent.image.blobs import disk_full
from criagent.image.tar.decompress import BadLayerError, LayerStream
from criagent.image.tar.headers import REGULAR, Entry, entries
from criagent.runtime.checkpoint.manifest import Archived
from criagent.runtime.checkpoint.record import IMAGES
from criagent.runtime.checkpoint.tar import Interrupted
from criagent.runtime.restore.source import Source, changed

DIFF = "rootfs-diff.tar"
_DELETED, _SPEC = "deleted.files", "spec.dump"
_MAX_DOCUMENT = 64 << 20
_MAX_IMAGES = 100_000
_IMAGE = re.compile(rb"checkpoint/([A-Za-z0-9_][A-Za-z0-9_.-]{0,200})")
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Mount(msgspec.Struct):
    destination: str


class _Spec(msgspec.Struct):
    mounts: list[_Mount] = []


@dataclass(frozen=True, slots=True)
class Documents:
    """What else an archive says: paths that the container has deleted, and where it has mounts."""

    deleted: tuple[str, ...]
    mounts: frozenset[str]


def unpack(source: Source, archived: Archived, target: Path, interrupted: Interrupted) -> Documents:
    """Write CRIU's images to `target`/checkpoint and the changed files to `target`/rootfs-diff.tar.

    Raises CorruptError for an archive that is not what the manifest says, ExhaustedError, OSError.
    """
    with disk_full(target.parent):
        (target / IMAGES).mkdir(mode=0o700, parents=True)
        with source.archive(archived) as file:
            stream = LayerStream(file)
            try:
                found = _Members(stream, archived, target, interrupted).read()
                stream.drain()
            except BadLayerError as exc:
                raise CorruptError(f"{archived.archive} of the checkpoint: {exc}") from exc
            finally:
                stream.close()
    if stream.compressed.hexdigest() != archived.sha256:
        raise changed(archived.archive)
    deleted = tuple(_decoded(found.get(_DELETED, b"[]"), list[str]))
    if any("\0" in path for path in deleted):
        raise CorruptError(f"{_DELETED} of {archived.archive} has a name that no file has")
    return Documents(
        deleted=deleted,
        mounts=frozenset(one.destination for one in _decoded(found[_SPEC], _Spec).mounts),
    )


class _Members:
    """Reads the members of one archive."""

    def __init__(
        self, stream: LayerStream, archived: Archived, target: Path, interrupted: Interrupted
    ) -> None:
        self._stream = stream
        self._archived = archived
        self._target = target
        self._interrupted = interrupted
        self._room = Room(target)
        self._left = archived.size
        self._found: dict[str, bytes] = {}
        self._images = 0

    def read(self) -> dict[str, bytes]:
        """Write the large members, return the documents. Raises CorruptError, BadLayerError."""
        for entry in entries(self._stream):
            self._interrupted()
            self._left -= entry.size
            if self._left < 0:  # compressed, which none of the agent's is
                raise changed(self._archived.archive)
            self._take(entry)
        if not self._images or _SPEC not in self._found:
            raise CorruptError(f"{self._archived.archive} is not an archive of a container")
        return self._found

    def _take(self, entry: Entry) -> None:
        image = _IMAGE.fullmatch(entry.name)
        name = entry.name.decode(errors="replace")
        if image is None and name not in {DIFF, _DELETED, _SPEC}:
            return
        if entry.kind != REGULAR or entry.sparse is not None:
            raise CorruptError(f"{name[:200]!r} of {self._archived.archive} is not a regular file")
        if image is not None:
            self._images += 1
            if self._images > _MAX_IMAGES:
                raise CorruptError(f"{self._archived.archive} has more than {_MAX_IMAGES} images")
            self._write(self._target / IMAGES / image[1].decode(), entry.size)
        elif name == DIFF:
            self._write(self._target / DIFF, entry.size)
        elif name in self._found or entry.size > _MAX_DOCUMENT:
            raise CorruptError(f"{name} of {self._archived.archive} is there twice or too large")
        else:
            self._found[name] = b"".join(map(bytes, self._stream.pieces(entry.size)))

    def _write(self, path: Path, size: int) -> None:
        self._room.take(size)
        try:
            fd = os.open(path, _CREATE, 0o600)
        except FileExistsError:
            raise CorruptError(f"{path.name} is twice in {self._archived.archive}") from None
        with os.fdopen(fd, "wb") as out:
            for piece in self._stream.pieces(size):
                self._interrupted()
                out.write(piece)


def _decoded(content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise CorruptError(f"a document of the checkpoint is malformed: {exc}") from exc
