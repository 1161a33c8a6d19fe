# SPDX-License-Identifier: Apache-2.0
"""Mounts: mount(2), umount2(2) and the file-descriptor API around fsopen(2).

System call numbers from 424 on are the same on all architectures. Synchronous, no policy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_int, c_uint, c_ulong
from dataclasses import dataclass
from pathlib import Path

from criagent.kernel.syscalls import Name, check, libc, syscall

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_MOUNT_SETATTR = 442
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_AT_FDCWD = -100

# What the parameters of the kernel's module would decide otherwise, so that a layer is the same on
# every node. A directory or file that names another place of the layers below it is for layers that
# are trusted: the kernel neither makes such ones nor follows them. Hard links need no index, since
# no file is written through two of them in layers that others use.
_OVERLAY = {
    b"source": b"overlay",
    b"index": b"off",
    b"nfs_export": b"off",
    b"metacopy": b"off",
    b"redirect_dir": b"nofollow",
}
_MOUNTINFO = Path("/proc/thread-self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


def mount(source: Name, target: Name, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    check(
        libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() or None,
            c_ulong(flags),
            data.encode() or None,
        ),
        "mount",
        source,
        target,
    )


def make_private(target: Name) -> None:
    """Stop propagation to and from the mounts at and below `target`; fine when there is none."""
    try:
        mount("none", target, flags=MS_REC | MS_PRIVATE)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # not a mount point
            raise


def make_shared(directory: Path) -> None:
    """Let what is mounted below `directory` later be seen by mount namespaces that are slaves.

    Where the mount that holds it is not shared, it is bound onto itself. Raises OSError.
    """
    entry = holder(directory.resolve())
    if entry is None or not entry.shared:
        mount(directory, directory, flags=MS_BIND | MS_REC)
        mount("none", directory, flags=MS_SHARED)


def umount2(target: Name, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), c_int(flags)), "umount2", target)


def detach(target: Name) -> bool:
    """Lazily unmount everything stacked on `target`; False when nothing was mounted there."""
    found = False
    while True:
        try:
            umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        except FileNotFoundError:
            return found
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # not a mount point
                return found
            raise
        found = True


def detach_below(directory: Path) -> None:
    """Lazily unmount every mount at or below `directory`, the innermost first."""
    prefix = str(directory)
    inside = [m for m in mountinfo() if m.target == prefix or m.target.startswith(prefix + "/")]
    for entry in sorted(inside, key=lambda m: m.target.count("/"), reverse=True):
        detach(entry.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayOptions:
    """With `label` every file has that SELinux label. With `volatile` nothing is synced, and what
    was written is lost with the node: the kernel does not mount the upper directory again.
    """

    label: str = ""
    volatile: bool = False


def overlay(
    lower_layers: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    target: Path,
    options: OverlayOptions = OverlayOptions(),
) -> None:
    """Mount an overlay of `lower_layers` (topmost first); writable with `upper` and `work`.

    Uses `lowerdir+` (Linux 6.7), which does not limit the length of the list. An OSError carries
    the kernel's message if there is one.
    """
    context = syscall(_FSOPEN, "fsopen", b"overlay", c_uint(_FSOPEN_CLOEXEC), source="overlay")
    try:
        for lower in lower_layers:
            _set_string(context, b"lowerdir+", os.fsencode(lower))
        if upper is not None and work is not None:
            _set_string(context, b"upperdir", os.fsencode(upper))
            _set_string(context, b"workdir", os.fsencode(work))
        for name, value in _OVERLAY.items():
            _set_string(context, name, value)
        if options.label:
            _set_string(context, b"context", options.label.encode())
        if options.volatile:
            with _kernel_messages(context, "volatile"):
                _fsconfig(context, _FSCONFIG_SET_FLAG, b"volatile")
        _create_at(context, target, attributes=0)
    finally:
        os.close(context)


def overlay_facts() -> dict[str, str]:
    """Options that every overlay is mounted with."""
    return {name.decode(): value.decode() for name, value in _OVERLAY.items() if name != b"source"}


def image(fstype: str, source: Path, target: Path, flags: Iterable[str] = ()) -> None:
    """Mount the file system in `source`, a file or a block device, read-only at `target`.

    Neither devices nor setuid programs work in it. `flags` are options of the file system. An
    OSError carries the kernel's message if there is one; ENODEV = the kernel does not have it.
    """
    context = syscall(_FSOPEN, "fsopen", fstype.encode(), c_uint(_FSOPEN_CLOEXEC), source=fstype)
    try:
        _set_string(context, b"source", os.fsencode(source))
        for flag in ("ro", *flags):
            with _kernel_messages(context, flag):
                _fsconfig(context, _FSCONFIG_SET_FLAG, flag.encode())
        attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        _create_at(context, target, attributes=attributes)
    finally:
        os.close(context)


def share(directory: Path) -> None:
    """Make later mounts below `directory` reach the mount namespaces that are slaves of this one.

    It becomes a mount point unless it lies on a shared mount already; idempotent.
    """
    where = directory.resolve()
    entry = holder(where)
    if entry is not None and entry.shared:
        return
    if entry is None or entry.target != str(where):
        mount(where, where, flags=MS_BIND)
    mount("none", where, flags=MS_SHARED)


def _create_at(context: int, target: Path, *, attributes: int) -> None:
    with _kernel_messages(context, target):
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None)
        tree = syscall(_FSMOUNT, "fsmount", context, c_uint(_FSMOUNT_CLOEXEC), c_uint(attributes))
    try:
        syscall(
            _MOVE_MOUNT,
            "move_mount",
            tree,
            b"",
            c_int(_AT_FDCWD),
            os.fsencode(target),
            c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
            source=target,
        )
    finally:
        os.close(tree)


def _fsconfig(context: int, command: int, key: bytes | None) -> None:
    syscall(_FSCONFIG, "fsconfig", context, c_uint(command), key, None, 0)


def has_recursive_attributes() -> bool:
    """Whether mount_setattr(2), which makes whole trees read-only, exists (5.12) and is allowed."""
    try:
        syscall(_MOUNT_SETATTR, "mount_setattr", c_int(-1), b"", c_uint(0), None, c_ulong(0))
    except OSError as exc:
        return exc.errno not in {errno.ENOSYS, errno.EPERM}  # the size is checked first: EINVAL
    return True


def _set_string(context: int, key: bytes, value: bytes) -> None:
    with _kernel_messages(context, value):
        syscall(
            _FSCONFIG,
            "fsconfig",
            context,
            c_uint(_FSCONFIG_SET_STRING),
            key,
            value,
            0,
            source=value,
        )


@contextlib.contextmanager
def _kernel_messages(context: int, what: object) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        with contextlib.suppress(OSError):
            messages = os.read(context, 4096).decode(errors="replace").strip()
            raise OSError(exc.errno, f"{exc.strerror} ({messages})", str(what)) from exc
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of mountinfo (man 5 proc_pid_mountinfo)."""

    root: str
    target: str
    options: frozenset[str]
    tags: tuple[str, ...]  # "shared:N", "master:N"
    fstype: str
    source: str
    super_options: tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """Mounts below it propagate to its peers."""
        return any(tag.startswith("shared:") for tag in self.tags)

    @property
    def slave(self) -> bool:
        """It receives mounts from a master."""
        return any(tag.startswith("master:") for tag in self.tags)


def mountinfo(without: Sequence[Path] = ()) -> list[MountEntry]:
    """The mounts of this process's mount namespace, but those below the directories `without`.

    On a node with 500 pods the agent's own 3000 take 15 ms to parse, and 1 ms to leave out.
    """
    lines = _lines()
    if without:  # a name that the kernel escapes matches none, so its mounts are parsed
        below = tuple(os.fsencode(directory) + b"/" for directory in without)
        lines = [line for line in lines if not _target(line).startswith(below)]
    return list(parse_mountinfo(map(os.fsdecode, lines)))


def _lines() -> list[bytes]:
    # Split by "\n" alone: the kernel escapes no other separator of lines in a name.
    return _MOUNTINFO.read_bytes().removesuffix(b"\n").split(b"\n")


def _target(line: bytes) -> bytes:
    """The mount point, as the kernel escapes it."""
    return line.split(b" ", 5)[4]


def holder(path: Path) -> MountEntry | None:
    """The mount of this process's mount namespace that `path`, which has no symlinks, is on.

    Only mounts that may hold it are parsed.
    """
    place = os.fsencode(path) + b"/"
    targets = ((_target(line), line) for line in _lines())
    lines = [
        os.fsdecode(line)
        for target, line in targets
        if b"\\" in target or place.startswith(target.rstrip(b"/") + b"/")
    ]
    return holding(path, parse_mountinfo(lines))


def holder_of(directory: Path) -> MountEntry | None:
    """As `holder`, by the number of the mount that an open directory is on: mountinfo is read only
    that far. For file systems that are sure to answer. Raises OSError.
    """
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        facts = Path(f"/proc/thread-self/fdinfo/{fd}").read_bytes().split()
    finally:
        os.close(fd)
    number = facts[facts.index(b"mnt_id:") + 1] + b" "
    with open(_MOUNTINFO, "rb") as lines:
        for line in lines:
            if line.startswith(number):
                return next(parse_mountinfo([os.fsdecode(line)]))
    return None


def holding(path: Path, table: Iterable[MountEntry]) -> MountEntry | None:
    """The mount that `path`, which has no symlinks, is on; of stacked mounts the topmost one."""
    found, place = None, f"{path}/"
    for entry in table:
        nearer = found is None or len(entry.target) >= len(found.target)
        if nearer and place.startswith(f"{entry.target.rstrip('/')}/"):
            found = entry
    return found


def parse_mountinfo(lines: Iterable[str]) -> Iterator[MountEntry]:
    """Entries of the lines of a mountinfo file."""
    for line in lines:
        left, _, right = line.rstrip("\n").partition(" - ")
        fields = left.split(" ")
        fstype, source, *rest = right.split(" ")
        yield MountEntry(
            root=_unescape(fields[3]),
            target=_unescape(fields[4]),
            options=frozenset(fields[5].split(",")),
            tags=tuple(fields[6:]),
            fstype=fstype,
            source=_unescape(source),
            super_options=tuple(_unescape(option) for option in rest[0].split(",")) if rest else (),
        )


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
