# SPDX-License-Identifier: Apache-2.0
"""Write one layer's tar stream into a directory, in overlay form. Runs in the unpack worker.

No path leads out of the layer's root (`layer_tree.py`). By itself a layer becomes whiteout devices
and opaque marks (kernel documentation, overlayfs, "whiteouts and opaque directories"). Where it
implies directories or removes something, `settle.py` compares it with the lower layers afterwards.
A layer that needs them, for a hard link to one of their files, raises NeedsLowerLayers and is
written again through a mounted overlay.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field

from criagent.image.snapshots.content_count import (
    ContentCount,
    ContentRecord,
    rest_of,
)
from criagent.image.tar import headers as tar
from criagent.image.tar.decompress import BadLayerError, FileStream, LayerStream
from criagent.image.tar.headers import Entry
from criagent.image.tar.names import shown
from criagent.image.unpack.attributes import FULL, drop_xattrs, has_attributes, set_xattrs, times
from criagent.image.unpack.layer_tree import (
    OPAQUE_XATTR,
    Below,
    Directory,
    LayerTree,
    is_whiteout,
    parent_of,
)
from criagent.image.unpack.protocol import NeedsLowerLayers

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_META = b".wh..wh."  # other bookkeeping of aufs
_DEFAULT_ACL = b"system.posix_acl_default"
_NAME_MAX = 255
_FRAME = 4096  # bytes that the smallest file takes on common file systems
_UNCLEAN = re.compile(rb"(?:^|/)\.{0,2}(?:/|\Z)")  # an empty part, "." or ".."
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {tar.CHAR: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_NODE_FAULTS = FULL | {  # failures of the node; any other errno is the doing of the layer
    errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EBADF,
    errno.EAGAIN, errno.ESTALE, errno.ENOSYS,
}  # fmt: skip


Stream = LayerStream | FileStream


class TooLargeError(Exception):
    """The layer needs more space than the disk has."""


@dataclass(slots=True)
class Extracted:
    """What a layer took, what is to be settled with the lower layers, and what it has.

    `content` is None when that must be counted. `implied` has directories that only paths imply,
    and whether only paths of whiteouts do; `whiteouts` the whiteout devices.
    """

    used_bytes: int = 0
    inodes: int = 0
    implied: dict[bytes, bool] = field(default_factory=dict)
    whiteouts: list[bytes] = field(default_factory=list)
    content: ContentCount | None = None


class Extractor:
    """Writes one layer below the directory `root`. `limit` is how many bytes it may grow to.

    Without `whiteouts` it is a plain archive: names of whiteouts are names like any other.
    """

    def __init__(
        self,
        stream: Stream,
        root: bytes,
        *,
        below: Below,
        limit: int,
        whiteouts: bool = True,
    ) -> None:
        self._stream = stream
        self._below = below
        self._limit = limit
        self._whiteouts = whiteouts
        self._result = Extracted()
        self._tree = LayerTree(root, below, self._charge)
        # None once the tree may differ from what its entries say; so does one of several layers.
        self._record: ContentRecord | None = None
        if below is not Below.MERGED and not has_attributes(self._tree.root.fd, b"."):
            self._record = ContentRecord()
        self._sample = b""  # a file without attributes in the layer
        # Of a merged layer: paths that are its own, and directories without lower children.
        self._own: set[bytes] = set()
        self._cleared: set[bytes] = set()

    def run(self) -> Extracted:
        """Write everything. Raises BadLayerError, TooLargeError, NeedsLowerLayers, OSError."""
        assert isinstance(self._stream, LayerStream)
        try:
            for entry in tar.entries(self._stream):
                self._put_or_blame(entry)
            self._stream.drain()
            return self._finished()
        finally:
            self._tree.close()

    def run_file(self, path: bytes, size: int) -> Extracted:
        """Write the stream's `size` bytes as the one file `path`. Raises as `run`."""
        try:
            self._put_or_blame(_file(path, size))
            return self._finished()
        finally:
            self._tree.close()

    def _finished(self) -> Extracted:
        self._set_times()
        result, root = self._result, self._tree.root.fd
        result.implied = self._tree.implied
        if self._record is None or self._record.full or not self._tree.plain:
            return result
        # Security modules of the node may give files attributes, too.
        if not self._sample or not has_attributes(root, self._sample):
            result.content = self._record.count(os.fstat(root))
        return result

    def _put_or_blame(self, entry: Entry) -> None:
        """Errors that the entry causes name it."""
        try:
            self._put(entry)
        except BadLayerError as exc:
            raise BadLayerError(f"entry {shown(entry.name)}: {exc}") from None
        except OSError as exc:
            if exc.errno in _NODE_FAULTS:
                raise
            text = os.strerror(exc.errno or 0)
            raise BadLayerError(f"entry {shown(entry.name)}: {text}") from None

    def _put(self, entry: Entry) -> None:
        path = clean(entry.name)
        if not path:
            if entry.kind == tar.DIRECTORY:
                drop_xattrs(self._tree.root.fd)
                self._finish_directory(self._tree.root, entry)
            return
        above, _, name = path.rpartition(b"/")
        if self._whiteouts and name.startswith(_WHITEOUT):
            self._record = None
            self._whiteout(path)
            return
        if entry.kind == tar.CHAR and entry.major == entry.minor == 0:
            self._record = None
            self._hide(above, name)  # to overlayfs that is what a whiteout is
            return
        parent = self._tree.directory(above)
        if self._below is Below.MERGED:
            self._own_from(parent.child(name))
        self._charge(entry)
        if entry.kind == tar.DIRECTORY:
            fd = self._tree.make_directory(parent, name, 0o700)
            try:
                self._finish_directory(Directory(fd, parent.child(name)), entry)
            finally:
                os.close(fd)
        elif entry.kind == tar.REGULAR:
            self._regular(parent, name, entry)
        elif entry.kind == tar.HARD_LINK:
            self._hard_link(parent, name, entry.link)
        elif entry.kind == tar.SYMLINK:
            self._symlink(parent, name, entry)
        elif entry.kind in _NODES:
            self._node(parent, name, entry)
        else:
            raise BadLayerError(f"the type {entry.kind!r} is unknown")

    def _charge(self, entry: Entry | None = None) -> None:
        """Count what is about to be made. Raises TooLargeError."""
        frames = 1
        if entry is not None and entry.sparse is not None:
            frames += sum(1 + length // _FRAME for _, length in entry.sparse)
        elif entry is not None:
            frames = -(-max(entry.size, 1) // _FRAME)
        self._result.inodes += 1
        self._result.used_bytes += frames * _FRAME
        if self._result.used_bytes > self._limit:
            raise TooLargeError(f"the layer is larger than the {self._limit} bytes that are free")

    # Directories.

    def _finish_directory(self, directory: Directory, entry: Entry) -> None:
        if _DEFAULT_ACL in entry.xattrs:
            self._record = None  # files inherit from it
        os.fchown(directory.fd, entry.uid, entry.gid)
        set_xattrs(directory.fd, entry)
        os.fchmod(directory.fd, entry.mode)
        if directory.path not in self._tree.times:
            self._tree.remember(directory.path)
        self._tree.times[directory.path] = entry.mtime_ns
        self._tree.modes.pop(directory.path, None)

    def _set_times(self) -> None:
        for path, mtime_ns in self._tree.times.items():
            try:
                fd = self._tree.open(path)
            except OSError as exc:
                if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    continue  # a later entry replaced the directory
                raise
            try:
                mode = self._tree.modes.get(path)
                if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                    os.fchmod(fd, mode)
                os.utime(fd, ns=times(mtime_ns))
                if self._record is not None and path:
                    above, _, name = path.rpartition(b"/")
                    found = os.fstat(fd)
                    self._record.add(above, name, found, rest_of(fd, ".", found))
            finally:
                os.close(fd)

    # Everything else.

    def _regular(self, parent: Directory, name: bytes, entry: Entry) -> None:
        mode = entry.mode & 0o777  # a setuid bit only once the owner is right
        try:
            fd = os.open(name, _CREATE, mode, dir_fd=parent.fd)
        except FileExistsError:
            self._tree.remove(parent, name)
            fd = os.open(name, _CREATE, mode, dir_fd=parent.fd)
        try:
            if entry.sparse is not None:
                self._write_sparse(fd, entry, entry.sparse)
            elif (content := self._stream.whole(entry.size)) is not None:
                _write_all(fd, content)
            else:
                for piece in self._stream.pieces(entry.size):
                    _write_all(fd, piece)
            self._finish_file(fd, parent, name, entry)
        finally:
            os.close(fd)

    def _write_sparse(self, fd: int, entry: Entry, sparse: list[tuple[int, int]]) -> None:
        for offset, length in sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            for piece in self._stream.pieces(length):
                _write_all(fd, piece)
        os.ftruncate(fd, entry.real_size)

    def _finish_file(self, fd: int, parent: Directory, name: bytes, entry: Entry) -> None:
        """Attributes of a file that was just made.

        A directory's setgid bit or default ACL, or the file system, may have given it another owner
        or mode: looking costs less than setting them again.
        """
        os.utime(fd, ns=times(entry.mtime_ns))
        found = os.fstat(fd)
        changed = bool(entry.xattrs)
        if found.st_uid != entry.uid or found.st_gid != entry.gid:
            os.fchown(fd, entry.uid, entry.gid)  # takes setuid bits and capabilities away
            changed = True
        if entry.xattrs:
            set_xattrs(fd, entry)
        if changed or stat.S_IMODE(found.st_mode) != entry.mode:
            os.fchmod(fd, entry.mode)
            found = os.fstat(fd)
        if self._record is None:
            return
        if entry.xattrs:
            self._note(parent, name)
        else:
            self._record.add(parent.path, name, found)
            self._sample = parent.child(name)

    def _hard_link(self, parent: Directory, name: bytes, target: bytes) -> None:
        above, _, base = target.rstrip(b"/").rpartition(b"/")
        if base in {b"", b".", b".."}:
            raise BadLayerError(f"a hard link to {shown(target)}, which is not a file")
        source = self._tree.find(above)
        if source is None:
            raise self._missing(target)
        try:
            found = os.stat(base, dir_fd=source.fd, follow_symlinks=False)
            if is_whiteout(found):
                raise self._missing(target)
            if stat.S_ISDIR(found.st_mode):
                if self._tree.implied.get(source.child(base)):  # there only for its whiteouts
                    raise self._missing(target)
                raise BadLayerError(f"a hard link to the directory {shown(target)}")
            if self._is_same(parent, name, found):
                return  # to replace it would lose the file
            self._tree.place(
                parent,
                name,
                lambda: os.link(
                    base, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False
                ),
            )
            self._note(parent, name)
        except FileNotFoundError:
            raise self._missing(target) from None
        finally:
            os.close(source.fd)

    def _is_same(self, parent: Directory, name: bytes, found: os.stat_result) -> bool:
        try:
            other = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, other)

    def _missing(self, target: bytes) -> Exception:
        if self._below is Below.UNKNOWN:
            return NeedsLowerLayers(f"a hard link to {shown(target)} of a lower layer")
        return BadLayerError(f"a hard link to {shown(target)}, which does not exist")

    def _symlink(self, parent: Directory, name: bytes, entry: Entry) -> None:
        if not entry.link:
            raise BadLayerError("a symbolic link without a target")
        self._tree.place(parent, name, lambda: os.symlink(entry.link, name, dir_fd=parent.fd))
        self._finish_node(parent, name, entry)

    def _node(self, parent: Directory, name: bytes, entry: Entry) -> None:
        mode, device = _NODES[entry.kind] | 0o600, os.makedev(entry.major, entry.minor)
        self._tree.place(parent, name, lambda: os.mknod(name, mode, device, dir_fd=parent.fd))
        self._finish_node(parent, name, entry)

    def _finish_node(self, parent: Directory, name: bytes, entry: Entry) -> None:
        """Attributes of what must not be opened. It was made a moment ago, by this process."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            set_xattrs(b"/proc/self/fd/%d/%s" % (parent.fd, name), entry)
        if entry.kind != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        os.utime(name, ns=times(entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)
        self._note(parent, name)

    def _note(self, parent: Directory, name: bytes) -> None:
        """Note what was made, as it is."""
        if self._record is not None:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            rest = rest_of(parent.fd, os.fsdecode(name), found)
            self._record.add(parent.path, name, found, rest)

    # Removals.

    def _whiteout(self, path: bytes) -> None:
        if max(map(len, path.split(b"/"))) > _NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "")
        above, _, name = path.rpartition(b"/")
        if name == _OPAQUE:
            self._hide_children(above)
        elif not name.startswith(_META):
            hidden = name[len(_WHITEOUT) :]
            if hidden in {b"", b".", b".."}:
                raise BadLayerError("a whiteout without a file name")
            self._hide(above, hidden)

    def _hide(self, above: bytes, name: bytes) -> None:
        """Hide what lower layers have as `name`, but nothing of this layer."""
        if self._below is Below.NOTHING:
            return
        parent = self._tree.directory_for_whiteout(above)
        if parent is None:
            return
        path = parent.child(name)
        try:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            if self._below is Below.UNKNOWN:
                self._mark(parent, name)
            return
        if self._below is Below.MERGED:
            if path not in self._own:
                self._tree.remove(parent, name)
            elif stat.S_ISDIR(found.st_mode):
                self._clear(path)
        elif stat.S_ISDIR(found.st_mode):
            # Nothing below lends it its attributes any more; if it is there at all.
            if self._tree.implied.pop(path, False):
                self._tree.remove(parent, name)
                self._mark(parent, name)
                return
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent.fd)
            try:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
            finally:
                os.close(fd)

    def _mark(self, parent: Directory, name: bytes) -> None:
        self._charge()
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        self._result.whiteouts.append(self._tree.remember(parent.child(name)))

    def _hide_children(self, path: bytes) -> None:
        """Hide all that lower layers have in the directory `path`, but nothing of this layer."""
        if self._below is Below.NOTHING:
            return
        parent = self._tree.directory_for_whiteout(path)
        if parent is None:
            return
        if self._below is Below.MERGED:
            self._clear(parent.path)
        elif parent.path:
            os.setxattr(parent.fd, OPAQUE_XATTR, b"y")
        else:
            raise NeedsLowerLayers("an opaque root, which overlayfs does not support")

    def _clear(self, path: bytes) -> None:
        """Remove all that is not of this layer below `path`; each directory is read only once."""
        todo = [path]
        while todo:
            here = todo.pop()
            if here in self._cleared:
                continue
            self._cleared.add(self._tree.remember(here))
            directory = Directory(self._tree.open(here), here)
            try:
                for text in os.listdir(directory.fd):
                    name = os.fsencode(text)
                    if (child := directory.child(name)) not in self._own:
                        self._tree.remove(directory, name)
                    elif _is_directory(directory.fd, name):
                        todo.append(child)
            finally:
                os.close(directory.fd)

    def _own_from(self, path: bytes) -> None:
        """Note that `path`, and so each directory above it, belongs to this layer."""
        while path and path not in self._own:
            self._own.add(self._tree.remember(path))
            path = parent_of(path)


def _file(path: bytes, size: int) -> Entry:
    """The file of an artifact, as if an archive had it."""
    return Entry(
        kind=tar.REGULAR,
        name=path,
        link=b"",
        mode=0o644,
        uid=0,
        gid=0,
        mtime_ns=0,
        size=size,
    )


def clean(name: bytes) -> bytes:
    """`name` relative to the root, without "." and ".."; the root is its own parent."""
    if _UNCLEAN.search(name) is None:
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def _is_directory(parent: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _write_all(fd: int, piece: memoryview) -> None:
    left = len(piece)
    while left:
        done = os.write(fd, piece)
        left -= done
        if left:
            piece = piece[done:]
