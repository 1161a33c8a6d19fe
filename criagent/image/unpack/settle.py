# SPDX-License-Identifier: Apache-2.0
"""A layer that was written alone, adapted to the layers below it. Runs in the unpack worker.

The list of what depends on them is in a file beside the layer's directory, since the layer's author
controls its length: it never leaves the worker. An implied directory gets the owner, mode, time and
attributes of the lower one; one that only whiteouts imply exists only if it exists below; a
whiteout that hides nothing is removed, since `ls` would show it in a directory of a single layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from criagent.image.tar.names import shown
from criagent.image.unpack.extract import Extracted
from criagent.image.unpack.layer_tree import OPAQUE_XATTR, is_whiteout, parent_of
from criagent.image.unpack.protocol import NeedsLowerLayers
from criagent.kernel.paths import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from criagent.kernel.trees import remove_tree

_IMPLIED, _BY_WHITEOUTS, _WHITEOUT = b"d", b"w", b"x"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_UNREADABLE = {errno.EINVAL, errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}  # empty capabilities
_NOT_COPIED = ("trusted.", "user.overlay.")


_LIST = "unsettled"


def write_unsettled(scratch: Path, found: Extracted) -> bool:
    """Note in `scratch` what must be settled of a layer; whether there is anything."""
    if not found.implied and not found.whiteouts:
        return False
    records = [
        (_BY_WHITEOUTS if only_whiteouts else _IMPLIED) + path + b"\0"
        for path, only_whiteouts in found.implied.items()
    ]
    records += [_WHITEOUT + path + b"\0" for path in found.whiteouts]
    with open(scratch / _LIST, "wb") as file:
        file.writelines(records)
    return True


def settle(root: Path, scratch: Path, below: Path) -> None:
    """Settle the layer below `root` with the lower layers, which `below` shows merged.

    `scratch` has what `write_unsettled` noted there.
    Raises NeedsLowerLayers when a lower layer has a link where this one implies a directory.
    """
    records = (scratch / _LIST).read_bytes().split(b"\0")[:-1]
    settler = _Settler(os.open(root, _DIRECTORY), os.open(below, _DIRECTORY))
    try:
        for record in sorted(records, key=lambda record: (record[:1] == _WHITEOUT, len(record))):
            kind, path = record[:1], record[1:]
            if kind == _WHITEOUT:
                settler.whiteout(path)
            else:
                settler.directory(path, only_whiteouts=kind == _BY_WHITEOUTS)
    finally:
        settler.close()
    (scratch / _LIST).unlink()


class _Settler:
    def __init__(self, root: int, below: int) -> None:
        self._root = root
        self._below = below
        self._opaque = {b"": False}

    def close(self) -> None:
        os.close(self._root)
        os.close(self._below)

    def directory(self, path: bytes, *, only_whiteouts: bool) -> None:
        own = _open(self._root, path, _DIRECTORY)
        if own is None:
            return  # a later entry removed it
        try:
            lower = self._lower(path)
            if lower is not None:
                try:
                    _copy_attributes(lower, own)
                finally:
                    os.close(lower)
            elif only_whiteouts:
                self._remove(path)
        finally:
            os.close(own)

    def whiteout(self, path: bytes) -> None:
        """Remove a whiteout that hides nothing."""
        parent = _open(self._root, parent_of(path), _DIRECTORY)
        if parent is None:
            return
        try:
            name = os.path.basename(path)
            try:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return
            if is_whiteout(found) and not self._hides(path):
                with _times_kept(parent):
                    os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)

    def _hides(self, path: bytes) -> bool:
        if self._opaque_down_to(parent_of(path)):
            return False
        lower = _open(self._below, path, os.O_PATH | os.O_NOFOLLOW)
        if lower is None:
            return False
        try:
            return not is_whiteout(os.fstat(lower))
        finally:
            os.close(lower)

    def _lower(self, path: bytes) -> int | None:
        """A descriptor of the lower directory at `path`, None when none can be seen."""
        above, _, name = path.rpartition(b"/")
        if self._opaque_down_to(above):
            return None
        parent = _open(self._below, above, _DIRECTORY)
        if parent is None:
            return None
        try:
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)
        if stat.S_ISLNK(found.st_mode):
            raise NeedsLowerLayers(f"{shown(path)} is a link in a lower layer")
        return None

    def _remove(self, path: bytes) -> None:
        parent = _open(self._root, parent_of(path), _DIRECTORY)
        if parent is not None:
            try:
                with _times_kept(parent):
                    remove_tree(os.fsdecode(os.path.basename(path)), dir_fd=parent)
            finally:
                os.close(parent)

    def _opaque_down_to(self, path: bytes) -> bool:
        """Whether `path` or a directory above it hides what is below it."""
        for prefix in reversed(list(self._unknown(path))):
            above = self._opaque[parent_of(prefix)]
            self._opaque[prefix] = above or self._is_opaque(prefix)
        return self._opaque[path]

    def _unknown(self, path: bytes) -> Iterator[bytes]:
        while path not in self._opaque:
            yield path
            path = parent_of(path)

    def _is_opaque(self, path: bytes) -> bool:
        fd = _open(self._root, path, _DIRECTORY)
        if fd is None:
            return False
        try:
            return os.getxattr(fd, OPAQUE_XATTR) == b"y"
        except OSError as exc:
            if exc.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                raise
            return False
        finally:
            os.close(fd)


def _open(root: int, path: bytes, flags: int) -> int | None:
    """Open `path` below `root`; None when it is not there or leads through a link."""
    try:
        return openat2(root, path or b".", flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno not in _ABSENT:
            raise
        return None


@contextlib.contextmanager
def _times_kept(directory: int) -> Iterator[None]:
    facts = os.fstat(directory)
    yield
    os.utime(directory, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _copy_attributes(source: int, target: int) -> None:
    facts = os.fstat(source)
    os.fchown(target, facts.st_uid, facts.st_gid)
    for key in os.listxattr(source):
        if key.startswith(_NOT_COPIED):
            continue
        try:
            os.setxattr(target, key, os.getxattr(source, key))
        except OSError as exc:
            if exc.errno not in _UNREADABLE:
                raise
    os.fchmod(target, facts.st_mode & 0o7777)
    os.utime(target, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
