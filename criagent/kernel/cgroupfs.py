# SPDX-License-Identifier: Apache-2.0
"""Cgroup v2 directories below /sys/fs/cgroup. Synchronous, no policy."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from criagent.kernel import mount

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = -1
_FILE = 1 << 16  # more than any of its files holds; seq_file returns it in one read
_MOST = 1 << 12  # what most hold: a larger buffer takes longer than reading


def unified() -> bool:
    """Whether only cgroup v2 is mounted on /sys/fs/cgroup."""
    return (ROOT / "cgroup.controllers").exists()


def has_nsdelegate() -> bool:
    """Whether a cgroup namespace bounds its processes: they cannot change the limits of its root
    (Documentation/admin-guide/cgroup-v2.rst, "Model of Delegation").
    """
    entry = mount.holder_of(ROOT)
    return entry is not None and entry.target == str(ROOT) and "nsdelegate" in entry.super_options


def directory(cgroup: str) -> Path:
    """The directory of `cgroup`, a path such as "/kubepods/pod1/abc"."""
    return ROOT / cgroup.strip("/")


def of_process(pid: int) -> str:
    """The cgroup of a process as this process's cgroup namespace shows it ("/a/b")."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    raise OSError(errno.ENOENT, "no cgroup v2 entry", f"/proc/{pid}/cgroup")


def make(cgroup: str) -> None:
    """Create it with its parents; idempotent."""
    directory(cgroup).mkdir(parents=True, exist_ok=True)


def join(cgroup: str, pid: int) -> None:
    """Move a process there."""
    (directory(cgroup) / "cgroup.procs").write_text(str(pid))


def kill(cgroup: str) -> None:
    """SIGKILL to everything in it and below (Linux 5.14); no effect when it does not exist.

    Raises ValueError for the root, where this process itself may live.
    """
    _check_below_root(cgroup)
    with contextlib.suppress(OSError):
        (directory(cgroup) / "cgroup.kill").write_text("1")


def freeze(cgroup: str, *, frozen: bool) -> None:
    """Stop everything in it and below, or let it go on; `is_frozen` says when it has stopped."""
    (directory(cgroup) / "cgroup.freeze").write_text(str(int(frozen)))


def is_frozen(cgroup: str) -> bool:
    """Whether everything in it and below has stopped (kernel documentation, cgroup-v2)."""
    return flat(read(cgroup, "cgroup.events")).get("frozen") == 1


def populated(cgroup: str) -> bool:
    """Whether a process lives in it or below."""
    try:
        events = (directory(cgroup) / "cgroup.events").read_text()
    except OSError:
        return False
    return "populated 1" in events


def remove(cgroup: str) -> bool:
    """Remove it with its children; False while it holds processes, True once it does not exist.

    Raises ValueError for the root.
    """
    _check_below_root(cgroup)
    top = directory(cgroup)
    try:
        for entry in os.scandir(top):
            if entry.is_dir(follow_symlinks=False) and not remove(f"{cgroup}/{entry.name}"):
                return False
        top.rmdir()
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno in {errno.EBUSY, errno.ENODEV}:
            return exc.errno == errno.ENODEV
        raise
    return True


def _check_below_root(cgroup: str) -> None:
    parts = cgroup.strip("/").split("/")
    if not parts[0] or not {".", ".."}.isdisjoint(parts):
        raise ValueError(f"{cgroup!r} is not a cgroup below {ROOT}")


def read(cgroup: str, name: str) -> str | None:
    """Content of one of its files; None when the kernel has no such file there."""
    try:
        fd = os.open(f"{ROOT}{cgroup}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _FILE).decode()
    except OSError:
        return None
    finally:
        os.close(fd)


class Reader:
    """The files of one cgroup, always the same one even if its name is reused meanwhile.

    A file that the kernel lacks, and every file of a removed cgroup, reads as None or as empty. To
    be used as a context manager.
    """

    def __init__(self, cgroup: str) -> None:
        self._path = f"{ROOT}/{cgroup.strip('/')}"
        self._fd = -1

    def __enter__(self) -> Reader:
        try:
            self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def raw(self, name: str) -> bytes | None:
        """Content of a file: any but cgroup.procs and threads, which may be longer."""
        if self._fd < 0:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            text = os.read(fd, _MOST)
            return text if len(text) < _MOST else text + os.read(fd, _FILE)
        except OSError:
            return None
        finally:
            os.close(fd)

    def limit(self, name: str) -> int | None:
        """A single number; UNLIMITED for "max"."""
        text = self.raw(name)
        if not text:
            return None
        return UNLIMITED if text.startswith(b"max") else int(text)

    def number(self, name: str) -> int | None:
        """A single number; None for "max"."""
        found = self.limit(name)
        return None if found == UNLIMITED else found

    def flat(self, name: str) -> dict[bytes, int] | None:
        """A flat keyed file: "key value" lines."""
        fields = (self.raw(name) or b"").split()
        return dict(zip(fields[::2], map(int, fields[1::2]), strict=True)) if fields else None

    def field(self, name: str, key: bytes) -> int | None:
        """One value of a flat keyed file."""
        text = b"\n" + (self.raw(name) or b"")
        at = text.find(b"\n" + key + b" ")
        return None if at < 0 else int(text[at + len(key) + 2 :].split(b"\n", 1)[0])

    def nested(self, name: str) -> dict[bytes, dict[bytes, bytes]]:
        """A nested keyed file: "key a=1 b=2" lines."""
        found = {}
        for line in (self.raw(name) or b"").splitlines():
            key, *pairs = line.split()
            found[key] = {a: b for a, sign, b in (pair.partition(b"=") for pair in pairs) if sign}
        return found


def processes(cgroup: str, most: int = 1 << 20) -> list[int] | None:
    """The processes in it and below, at most `most`; None when it does not exist."""
    found: list[int] = []
    pending = [os.fspath(directory(cgroup))]
    top = True
    while pending and len(found) < most:
        path = pending.pop()
        try:
            found += map(int, _lines(f"{path}/cgroup.procs"))
            if os.stat(path).st_nlink > 2:  # kernfs counts children there
                pending += [one.path for one in os.scandir(path) if one.is_dir()]
        except OSError as exc:
            if top and exc.errno != errno.EOPNOTSUPP:  # a threaded cgroup lists no processes
                return None
        top = False
    return found[:most]


def _lines(path: str) -> list[bytes]:
    """The lines of a file of any length, without Python's buffers."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, _MOST)
        while more := os.read(fd, _FILE):
            text += more
        return text.split()
    finally:
        os.close(fd)


def flat(text: str | None) -> dict[str, int]:
    """A flat keyed file ("key value" lines) as numbers; {} for None."""
    values = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            values[key] = int(value)
    return values
