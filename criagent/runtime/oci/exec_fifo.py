# SPDX-License-Identifier: Apache-2.0
"""The FIFO on which the init of a container waits that crun has created.

`crun start` checks that init lives, writes one byte into `exec.fifo` of the container's state
directory, unlinks it, and runs the hooks of the stage poststart: nothing else, in every version
from 1.0 to 1.29. Done here it costs three system calls instead of a process (docs/adr/0021).

crun takes a container for "created" while the FIFO is there. It is unlinked last, so a daemon that
died in between leaves a FIFO that `was_released` recognises.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import termios
from pathlib import Path

import msgspec

from criagent.base import faults

_NAME = "exec.fifo"


class _Hooks(msgspec.Struct):
    poststart: list[object] = []


class _Config(msgspec.Struct):
    hooks: _Hooks | None = None


def release(state: Path) -> bool:
    """Let the init of a created container run; `state` is crun's directory of the container.

    False if crun itself has to: it has hooks to run, init is dead or was started before, or there
    is no such FIFO. Does not wait. Raises OSError.
    """
    fifo = state / _NAME
    if _has_hooks(state):
        return False
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        # Nobody reads it: init is dead, or was let run. crun reports either, and would wait for a
        # reader if the FIFO were there.
        fifo.unlink(missing_ok=True)
        return False
    try:
        os.write(fd, b"\0")
    finally:
        os.close(fd)
    faults.reach("container-start:fifo")
    fifo.unlink(missing_ok=True)
    return True


def was_released(state: Path, init: int) -> bool:
    """Whether init was let run though the FIFO is still there, which is removed then."""
    fifo = state / _NAME
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _waiting(fd) and _has_open(init, os.fstat(fd)):
            return False
    finally:
        os.close(fd)
    fifo.unlink(missing_ok=True)
    return True


def _has_hooks(state: Path) -> bool:
    """Whether crun has to run hooks after the start; also if its copy of config.json is odd."""
    try:
        config = msgspec.json.decode((state / "config.json").read_bytes(), type=_Config)
    except (OSError, msgspec.MsgspecError):
        return True
    return config.hooks is not None and bool(config.hooks.poststart)


def _waiting(fd: int) -> int:
    """How many bytes a pipe holds (man 2 ioctl_pipe, FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def _has_open(pid: int, file: os.stat_result) -> bool:
    """Whether a process has that file open, or cannot be looked at."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.path.samestat(entry.stat(), file):
                    return True
    except OSError:
        return True
    return False
