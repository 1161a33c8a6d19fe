"""Write one layer's tar stream into a directory, in overlay form. Runs in the unpack worker.

Every path is opened with openat2(2) below the layer's root, so no link leads out of it. By itself a
layer becomes whiteout devices and opaque marks (kernel documentation, overlayfs, "whiteouts and
opaque directories"). A layer that leans on the ones below it - a hard link or a path through a
symbolic link of theirs - raises NeedsLowersError and is written again through a mounted overlay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from criagent.image import tar_headers as tar
from criagent.image.decompress import BadLayerError, LayerStream
from criagent.image.tar_headers import Entry
from criagent.kernel.paths import open_in_root
from criagent.kernel.trees import remove_tree

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OPAQUE_XATTR = b"trusted.overlay.opaque"
_OURS = (b"trusted.overlay.", b"user.overlay.")  # an image must not steer the overlay
_MAX_ID = 2**32 - 2  # 2^32-1 tells chown(2) to change nothing
_OPEN_DIRECTORIES = 256
_FRAME = 4096  # bytes that the smallest file takes on common file systems
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class NeedsLowersError(Exception):
    """The layer cannot be written without the layers below it."""


class TooLargeError(Exception):
    """The layer needs more space than the disk has."""


@dataclass(slots=True)
class Extracted:
    """What a layer took, and the directories that only its files' paths imply."""

    used_bytes: int = 0
    inodes: int = 0
    implied: list[str] = field(default_factory=list)


class Extractor:
    """Writes one layer below the directory `root`.

    `merged` says that `root` is an overlay with the lower layers in it, so that removals are done
    there instead of marked. `limit` is how many bytes the layer may grow to.
    """

    def __init__(self, stream: LayerStream, root: bytes, *, merged: bool, limit: int) -> None:
        self._stream = stream
        self._root = os.open(root, _DIRECTORY)
        self._merged = merged
        self._limit = limit
        self._open: dict[bytes, int] = {}
        self._implied: dict[bytes, None] = {}
        self._times: dict[bytes, int] = {}
        self._written: set[bytes] = set()
        self._result = Extracted()

    def run(self) -> Extracted:
        """Write everything. Raises BadLayerError, NeedsLowersError, OSError."""
        try:
            for entry in tar.entries(self._stream):
                self._put(entry)
            self._stream.drain()
            for path, mtime_ns in reversed(self._times.items()):
                self._set_directory_time(path, mtime_ns)
            self._result.implied = [os.fsdecode(path) for path in self._implied]
            return self._result
        finally:
            self._forget_directories()
            os.close(self._root)

    def _put(self, entry: Entry) -> None:
        path = clean(entry.name)
        if not path:
            if entry.kind == tar.DIRECTORY:
                self._finish_directory(self._root, b".", entry)
            return
        directory, _, name = path.rpartition(b"/")
        parent = self._directory(directory)
        if name.startswith(_WHITEOUT):
            self._whiteout(parent, directory, name)
            return
        if self._merged:
            self._written.add(path)
        self._result.inodes += 1
        self._result.used_bytes += -(-max(entry.size, 1) // _FRAME) * _FRAME
        if self._result.used_bytes > self._limit:
            raise TooLargeError(f"the layer grows beyond the {self._limit} bytes that are free")
        if entry.uid > _MAX_ID or entry.gid > _MAX_ID or min(entry.uid, entry.gid) < 0:
            raise BadLayerError(f"{path!r} has the impossible owner {entry.uid}:{entry.gid}")
        if entry.kind == tar.DIRECTORY:
            self._make_directory(parent, path, name, entry)
        elif entry.kind == tar.REGULAR:
            self._regular(parent, name, entry)
        elif entry.kind == tar.HARD_LINK:
            self._hard_link(parent, name, clean(entry.link))
        elif entry.kind == tar.SYMLINK:
            self._symlink(parent, name, entry)
        elif entry.kind in {tar.CHAR, tar.BLOCK_DEVICE, tar.FIFO}:
            self._node(parent, name, entry)
        else:
            raise BadLayerError(f"{path!r} has the unknown type {entry.kind!r}")

    # Directories.

    def _directory(self, path: bytes) -> int:
        """A descriptor of the directory `path`, which is made when nothing of the layer did."""
        if not path:
            return self._root
        if (fd := self._open.get(path)) is not None:
            return fd
        try:
            fd = open_in_root(self._root, path, _DIRECTORY)
        except FileNotFoundError:
            fd = self._imply(path)
        except NotADirectoryError:
            fd = self._replace_by_directory(path)
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}:
                raise BadLayerError(f"path {path[:200]!r}: {os.strerror(exc.errno)}") from None
            raise
        if len(self._open) >= _OPEN_DIRECTORIES:
            self._forget_directories()
        self._open[path] = fd
        return fd

    def _imply(self, path: bytes) -> int:
        above, _, name = path.rpartition(b"/")
        parent = self._directory(above)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            raise NeedsLowersError(f"{path!r} leads through a link into a lower layer") from None
        if not self._merged:
            self._implied[path] = None
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)

    def _replace_by_directory(self, path: bytes) -> int:
        """A file or whiteout of this layer stands where a path goes through."""
        above, _, name = path.rpartition(b"/")
        parent = self._directory(above)
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            raise BadLayerError(f"path {path[:200]!r} goes through a link to a file")
        self._remove(parent, name)
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        if _is_whiteout(found) and not self._merged:
            os.setxattr(fd, _OPAQUE_XATTR, b"y")
        return fd

    def _make_directory(self, parent: int, path: bytes, name: bytes, entry: Entry) -> None:
        self._implied.pop(path, None)
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                opaque = _is_whiteout(found) and not self._merged
                self._remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if opaque:
                os.setxattr(fd, _OPAQUE_XATTR, b"y")
            self._finish_directory(fd, path, entry)
        finally:
            os.close(fd)

    def _finish_directory(self, fd: int, path: bytes, entry: Entry) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        _set_xattrs(fd, entry)
        os.fchmod(fd, entry.mode)
        self._times[path] = entry.mtime_ns

    def _set_directory_time(self, path: bytes, mtime_ns: int) -> None:
        with contextlib.suppress(OSError):  # a later entry may have replaced the directory
            fd = open_in_root(self._root, path, _DIRECTORY | os.O_NOFOLLOW)
            try:
                _set_time(fd, mtime_ns)
            finally:
                os.close(fd)

    def _forget_directories(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    # Everything else.

    def _regular(self, parent: int, name: bytes, entry: Entry) -> None:
        with self._replacing(parent, name):
            try:
                fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
            except FileExistsError:
                self._remove(parent, name)
                fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.sparse is None:
                for piece in self._stream.pieces(entry.size):
                    _write_all(fd, piece)
            else:
                for offset, length in entry.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                    for piece in self._stream.pieces(length):
                        _write_all(fd, piece)
                os.ftruncate(fd, entry.real_size)
            os.fchown(fd, entry.uid, entry.gid)
            _set_xattrs(fd, entry)
            os.fchmod(fd, entry.mode)
            _set_time(fd, entry.mtime_ns)
        finally:
            os.close(fd)

    def _hard_link(self, parent: int, name: bytes, target: bytes) -> None:
        if not target:
            raise BadLayerError(f"the hard link {name!r} has no target")
        directory, _, base = target.rpartition(b"/")
        try:
            source = open_in_root(self._root, directory or b".", _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing_target(target) from None
        try:
            if os.path.lexists(b"/proc/self/fd/%d/%s" % (source, base)) and _same(
                source, base, parent, name
            ):
                return
            with self._replacing(parent, name):
                try:
                    _link(source, base, parent, name)
                except FileExistsError:
                    self._remove(parent, name)
                    _link(source, base, parent, name)
        except FileNotFoundError:
            raise self._missing_target(target) from None
        except PermissionError:
            raise BadLayerError(f"the hard link {name!r} names the directory {target!r}") from None
        finally:
            os.close(source)

    def _missing_target(self, target: bytes) -> Exception:
        if self._merged:
            return BadLayerError(f"a hard link names {target[:200]!r}, which no layer has")
        return NeedsLowersError(f"a hard link names {target[:200]!r} of a lower layer")

    def _symlink(self, parent: int, name: bytes, entry: Entry) -> None:
        if not entry.link:
            raise BadLayerError(f"the symbolic link {name!r} is empty")
        with self._replacing(parent, name):
            try:
                os.symlink(entry.link, name, dir_fd=parent)
            except FileExistsError:
                self._remove(parent, name)
                os.symlink(entry.link, name, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        with contextlib.suppress(OverflowError):
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _node(self, parent: int, name: bytes, entry: Entry) -> None:
        kind = {
            tar.CHAR: stat.S_IFCHR,
            tar.BLOCK_DEVICE: stat.S_IFBLK,
            tar.FIFO: stat.S_IFIFO,
        }[entry.kind]
        device = os.makedev(entry.major, entry.minor)
        with self._replacing(parent, name):
            try:
                os.mknod(name, kind | 0o600, device, dir_fd=parent)
            except FileExistsError:
                self._remove(parent, name)
                os.mknod(name, kind | 0o600, device, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        # The node was made by us a moment ago in a directory that nobody else writes to.
        os.chmod(name, entry.mode, dir_fd=parent)

    def _whiteout(self, parent: int, directory: bytes, name: bytes) -> None:
        if name == _OPAQUE:
            if self._merged:
                self._hide_lower_children(parent, directory)
            else:
                os.setxattr(parent, _OPAQUE_XATTR, b"y")
            return
        if name.startswith(b".wh..wh."):
            return  # bookkeeping of aufs
        hidden = name[len(_WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise BadLayerError(f"the whiteout {name!r} names no file")
        path = directory + b"/" + hidden if directory else hidden
        try:
            found = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            if not self._merged:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            return
        if self._merged:
            if path not in self._written:
                self._remove(parent, hidden)
        elif stat.S_ISDIR(found.st_mode):  # it hides the lower one only
            fd = os.open(hidden, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.setxattr(fd, _OPAQUE_XATTR, b"y")
            finally:
                os.close(fd)

    def _hide_lower_children(self, parent: int, directory: bytes) -> None:
        for text in os.listdir(parent):
            child = os.fsencode(text)
            path = directory + b"/" + child if directory else child
            ours = path in self._written or any(w.startswith(path + b"/") for w in self._written)
            if not ours:
                self._remove(parent, child)

    @contextlib.contextmanager
    def _replacing(self, parent: int, name: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:
                raise BadLayerError(f"the name {name[:80]!r}… is too long") from None
            raise

    def _remove(self, parent: int, name: bytes) -> None:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._forget_all_but(parent)
            remove_tree(os.fsdecode(name), dir_fd=parent)
        else:
            if stat.S_ISLNK(found.st_mode):
                self._forget_all_but(parent)
            os.unlink(name, dir_fd=parent)

    def _forget_all_but(self, kept: int) -> None:
        """Paths may mean another directory from now on."""
        for path, fd in list(self._open.items()):
            if fd != kept:
                os.close(fd)
                del self._open[path]


def clean(name: bytes) -> bytes:
    """`name` relative to the root, without "." and doubled slashes. Raises BadLayerError."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise BadLayerError(f"the path {name[:200]!r} leads upwards")
    if b"\0" in name:
        raise BadLayerError(f"the path {name[:200]!r} has a NUL byte")
    return b"/".join(parts)


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _link(source: int, base: bytes, parent: int, name: bytes) -> None:
    os.link(base, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)


def _same(source: int, base: bytes, parent: int, name: bytes) -> bool:
    """Whether the link would be onto itself; replacing it would lose the file."""
    try:
        one = os.stat(base, dir_fd=source, follow_symlinks=False)
        other = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _set_xattrs(fd: int, entry: Entry) -> None:
    for key, value in entry.xattrs.items():
        if key.startswith(_OURS):
            continue
        try:
            os.setxattr(fd, key, value)
        except OSError as exc:
            if exc.errno not in {errno.EOPNOTSUPP, errno.EPERM}:
                raise BadLayerError(f"extended attribute {key[:80]!r}: {exc.strerror}") from None


def _set_time(fd: int, mtime_ns: int) -> None:
    with contextlib.suppress(OverflowError):
        os.utime(fd, ns=(mtime_ns, mtime_ns))
