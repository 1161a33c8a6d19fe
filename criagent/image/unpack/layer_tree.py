# SPDX-License-Identifier: Apache-2.0
"""Directories of a layer that is being written: paths resolved below its root, as containerd does.

A link in a path leads to its target below the root; a target that is missing is made. Each step
opens one name without following links, so nothing outside the root is reached. Runs in the unpack
worker.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from criagent.image.tar.decompress import BadLayerError
from criagent.image.unpack.attributes import drop_xattrs
from criagent.kernel.paths import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from criagent.kernel.trees import remove_tree

T = TypeVar("T")

OPAQUE_XATTR = b"trusted.overlay.opaque"
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_FOLLOW = DIRECTORY_FLAGS | os.O_NOFOLLOW
_OPEN_DIRECTORIES = 256
_MAX_LINKS = 255  # in one path, as in containerd
_MAX_STEPS = 20_000_000  # names looked up behind links, of a whole layer
_MAX_NAMES = 512 << 20  # bytes of paths that are remembered until the layer's end
_NAME_COST = 100  # bytes that an empty name takes


class Below(enum.Enum):
    """What the layer is written over."""

    UNKNOWN = enum.auto()  # an empty directory; removals are marked for the overlay
    NOTHING = enum.auto()  # an empty directory of an image's lowest layer; nothing can be removed
    MERGED = enum.auto()  # an overlay with the lower layers in it; removals are done there


class Directory(NamedTuple):
    """An open directory and its path below the root, which leads through no link."""

    fd: int
    path: bytes

    def child(self, name: bytes) -> bytes:
        """The path of `name` in it."""
        return self.path + b"/" + name if self.path else name


class _For(enum.Enum):
    CONTENT = enum.auto()
    WHITEOUT = enum.auto()
    LINK_TARGET = enum.auto()


class LayerTree:
    """The tree below the directory `root`.

    `implied` has directories that only paths imply, and whether only paths of whiteouts do. `times`
    is for the modification times of directories in nanoseconds, to be set at the end, `modes` for
    the modes of those of lower layers: fuse-overlayfs changes them when it copies them. `charge` is
    called before anything is made without an entry of its own. `plain` says that this never
    happened, and that nothing was removed.
    """

    def __init__(self, root: bytes, below: Below, charge: Callable[[], None]) -> None:
        self.below = below
        self.implied: dict[bytes, bool] = {}
        self.times: dict[bytes, int] = {}
        self.modes: dict[bytes, int] = {}
        self.plain = True
        self.root = Directory(os.open(root, DIRECTORY_FLAGS), b"")
        self._charge = charge
        self._open: dict[bytes, Directory] = {}
        self._steps = _MAX_STEPS
        self._names = _MAX_NAMES
        if below is Below.MERGED:
            self.times[b""] = os.fstat(self.root.fd).st_mtime_ns

    def close(self) -> None:
        """Close every descriptor."""
        self._forget()
        os.close(self.root.fd)

    def remember(self, path: bytes) -> bytes:
        """Count `path` among what is kept in memory. Raises BadLayerError beyond the limit."""
        self._names -= len(path) + _NAME_COST
        if self._names < 0:
            raise BadLayerError(f"the layer's paths take more than {_MAX_NAMES >> 20} MiB")
        return path

    # Looking up. The descriptor of a Directory is valid until the next call for another one.

    def directory(self, path: bytes) -> Directory:
        """The directory at `path` for an entry in it; made when missing. Raises BadLayerError."""
        found = self._directory(path, _For.CONTENT)
        assert found is not None
        self._has_content(found.path)
        return found

    def directory_for_whiteout(self, path: bytes) -> Directory | None:
        """The directory at `path`, or None when nothing of a lower layer can be seen there."""
        return self._directory(path, _For.WHITEOUT)

    def find(self, path: bytes) -> Directory | None:
        """The directory at `path`, for the caller to close; None if it is missing."""
        return self._walk(path, _For.LINK_TARGET)

    def open(self, path: bytes, flags: int = DIRECTORY_FLAGS) -> int:
        """Open `path`, which leads through no link."""
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
        return openat2(self.root.fd, path or b".", flags, resolve)

    def _directory(self, path: bytes, purpose: _For) -> Directory | None:
        if not path:
            return self.root
        if (cached := self._open.get(path)) is not None:
            return cached
        found: Directory | None
        try:
            found = Directory(self.open(path), path)
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            found = self._walk(path, purpose)
        if found is None:
            return None
        if self.below is Below.MERGED and found.path not in self.times:
            facts = os.fstat(found.fd)
            self.times[self.remember(found.path)] = facts.st_mtime_ns
            self.modes[found.path] = stat.S_IMODE(facts.st_mode)
        if len(self._open) >= _OPEN_DIRECTORIES:
            self._forget()
        self._open[path] = found
        return found

    def _walk(self, path: bytes, purpose: _For) -> Directory | None:
        todo = path.split(b"/")[::-1]
        done: list[bytes] = []
        links, here = 0, -1
        try:
            while todo:
                name = todo.pop()
                self._count_step()
                if name in {b"", b"."}:
                    continue
                if name == b"..":
                    del done[-1:]
                    here = _closed(here)
                    continue
                if here < 0:
                    here = self.open(b"/".join(done))
                step = self._step(Directory(here, b"/".join(done)), name, purpose)
                if step is None:
                    return None
                if isinstance(step, int):
                    _closed(here)
                    here = step
                    done.append(name)
                    continue
                links += 1
                if links > _MAX_LINKS:
                    if purpose is _For.WHITEOUT:
                        return None  # a loop hides what is below it
                    raise BadLayerError(f"more than {_MAX_LINKS} links in one path")
                if step.startswith(b"/"):
                    done.clear()
                    here = _closed(here)
                todo.extend(step.split(b"/")[::-1])
            found = Directory(self.open(b"/".join(done)) if here < 0 else here, b"/".join(done))
            here = -1
            return found
        finally:
            _closed(here)

    def _step(self, here: Directory, name: bytes, purpose: _For) -> int | bytes | None:
        """A descriptor of the directory `name`, the target of the link `name`, or None."""
        try:
            return os.open(name, _NO_FOLLOW, dir_fd=here.fd)
        except FileNotFoundError:
            marks = purpose is _For.WHITEOUT and self.below is Below.UNKNOWN
            if purpose is _For.CONTENT or marks:
                return self._imply(here, name, only_whiteouts=marks)
            return None
        except OSError as exc:
            if exc.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
        try:
            return os.readlink(name, dir_fd=here.fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
        # A file, or a whiteout: it hides what lower layers have here.
        if purpose is not _For.CONTENT:
            return None
        self._has_content(here.path)
        return _plain(self.make_directory(here, name, 0o755))

    def _has_content(self, path: bytes) -> None:
        while self.implied.get(path):
            self.implied[path] = False
            path = parent_of(path)

    def _count_step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise BadLayerError("the layer's paths lead through too many links")

    # Making and removing.

    def _imply(self, here: Directory, name: bytes, *, only_whiteouts: bool) -> int:
        self.plain = False
        self._charge()
        os.mkdir(name, 0o755, dir_fd=here.fd)
        path = here.child(name)
        self.times.pop(path, None)
        self.modes.pop(path, None)
        if not only_whiteouts:
            self._has_content(here.path)
        if self.below is Below.UNKNOWN:
            self.implied[self.remember(path)] = only_whiteouts
        return _plain(os.open(name, _NO_FOLLOW, dir_fd=here.fd))

    def make_directory(self, parent: Directory, name: bytes, mode: int) -> int:
        """A descriptor of the directory `name`, made or without its former attributes."""
        self.implied.pop(parent.child(name), None)
        was_there = hides = False
        try:
            os.mkdir(name, mode, dir_fd=parent.fd)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            was_there = stat.S_ISDIR(found.st_mode)
            if not was_there:
                hides = self.below is Below.UNKNOWN
                self.remove(parent, name)
                os.mkdir(name, mode, dir_fd=parent.fd)
        fd = os.open(name, _NO_FOLLOW, dir_fd=parent.fd)
        if was_there:
            drop_xattrs(fd)
        if hides:  # the file that it replaces hid a lower directory of this name
            os.setxattr(fd, OPAQUE_XATTR, b"y")
        return fd

    def place(self, parent: Directory, name: bytes, make: Callable[[], T]) -> T:
        """What `make` returns, which creates `name`; what stands there is removed first."""
        try:
            return make()
        except FileExistsError:
            self.remove(parent, name)
            return make()

    def remove(self, parent: Directory, name: bytes) -> None:
        """Delete `name` and what is in it."""
        self.plain = False
        found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._forget(parent.fd)
            remove_tree(os.fsdecode(name), dir_fd=parent.fd)
            return
        if stat.S_ISLNK(found.st_mode):
            self._forget(parent.fd)
        os.unlink(name, dir_fd=parent.fd)

    def _forget(self, kept: int = -1) -> None:
        """Close what was looked up: paths may mean another directory from now on."""
        for path, found in list(self._open.items()):
            if found.fd != kept:
                os.close(found.fd)
                del self._open[path]


def parent_of(path: bytes) -> bytes:
    """The path of the directory that `path` is in."""
    return path.rpartition(b"/")[0]


def is_whiteout(found: os.stat_result) -> bool:
    """Whether overlayfs takes the file for a removed one."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _plain(directory: int) -> int:
    """What a directory above passed on (setgid bit and group) is not in the layer: undone."""
    os.fchown(directory, 0, 0)
    os.fchmod(directory, 0o755)
    return directory


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
