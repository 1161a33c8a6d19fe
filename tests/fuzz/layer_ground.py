# SPDX-License-Identifier: Apache-2.0
"""A scratch directory in which layers are written in this process, and what lies in a tree."""

from __future__ import annotations

import atexit
import hashlib
import io
import os
import shutil
import stat
import tempfile
from pathlib import Path

from criagent.image.tar.decompress import LayerStream
from criagent.image.unpack.extract import Extracted, Extractor
from criagent.image.unpack.layer_tree import Below

TOP = Path(tempfile.mkdtemp(prefix="criagent-fuzz-"))
atexit.register(shutil.rmtree, TOP, ignore_errors=True)
Facts = dict[str, tuple[object, ...]]


def fresh(name: str) -> Path:
    """An empty directory of this name."""
    path = TOP / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def extract(data: bytes, root: Path, below: Below) -> Extracted:
    """Write a layer of plain tar."""
    stream = LayerStream(io.BytesIO(data))
    try:
        return Extractor(stream, os.fsencode(root), below=below, limit=1 << 30).run()
    finally:
        stream.close()


def facts(top: Path, *, directory_times: bool) -> tuple[Facts, list[tuple[str, ...]]]:
    """Type, mode, owner, content, time and attributes of each path; and which are one file."""
    found: Facts = {}
    links: dict[tuple[int, int], list[str]] = {}
    for base, directories, files in os.walk(top):
        for name in [*directories, *files, "."]:
            if name == "." and Path(base) != top:
                continue
            path = Path(base, name)
            seen = path.lstat()
            key = os.path.relpath(path, top)
            found[key] = _facts(path, seen, directory_times)
            if not stat.S_ISDIR(seen.st_mode) and seen.st_nlink > 1:
                links.setdefault((seen.st_dev, seen.st_ino), []).append(key)
    return found, sorted(tuple(sorted(names)) for names in links.values())


def _facts(path: Path, seen: os.stat_result, directory_times: bool) -> tuple[object, ...]:
    kind = stat.S_IFMT(seen.st_mode)
    parts: list[object] = [kind, seen.st_uid, seen.st_gid]
    if kind == stat.S_IFREG:
        digest = hashlib.sha256(path.read_bytes()) if seen.st_size < 1 << 22 else None
        parts += [seen.st_size, digest and digest.hexdigest()]
    elif kind == stat.S_IFLNK:
        parts.append(path.readlink())
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        parts.append(seen.st_rdev)
    if kind != stat.S_IFLNK:
        parts.append(stat.S_IMODE(seen.st_mode))
    if kind != stat.S_IFDIR or directory_times:
        parts.append(seen.st_mtime_ns)
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        try:
            parts.append((name, os.getxattr(path, name, follow_symlinks=False)))
        except OSError as exc:  # an empty security.capability can be set and not read
            parts.append((name, exc.errno))
    return tuple(parts)
