"""Cgroup v2 directories below /sys/fs/cgroup. Synchronous, no policy."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_FILE = 1 << 16  # more than any of its files has; seq_file gives it in one read


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
    """SIGKILL to everything in it and below (Linux 5.14); nothing when it is gone."""
    with contextlib.suppress(FileNotFoundError, OSError):
        (directory(cgroup) / "cgroup.kill").write_text("1")


def populated(cgroup: str) -> bool:
    """Whether a process lives in it or below."""
    try:
        events = (directory(cgroup) / "cgroup.events").read_text()
    except OSError:
        return False
    return "populated 1" in events


def remove(cgroup: str) -> bool:
    """Remove it with its children; False while processes are in there, True when it is gone."""
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


def read(cgroup: str, name: str) -> str | None:
    """Content of one of its files; None when the kernel has no such file there."""
    try:
        fd = os.open(f"/sys/fs/cgroup{cgroup}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _FILE).decode()
    except OSError:
        return None
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
