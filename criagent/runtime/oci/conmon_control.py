# SPDX-License-Identifier: Apache-2.0
"""conmon's control FIFO, one line at a time.

Of two lines that conmon (2.1.12) reads at once it takes the first twice and the second never. So a
line is written only when the FIFO is empty, without an await in between: all writers run on this
loop.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

from criagent.base.errors import TimedOutError, WrongStateError

_LIMIT_S = 10.0
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.25


async def send(control: Path, line: bytes) -> None:
    """Send `line` to the monitor once it has read the line before.

    Raises WrongStateError when it has ended, TimedOutError when it does not read.
    """
    try:
        fd = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in {errno.ENXIO, errno.ENOENT}:
            raise WrongStateError("the monitor has just ended") from None
        raise
    try:
        async with asyncio.timeout(_LIMIT_S):
            pause_s = _FIRST_LOOK_S
            while _unread(fd):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_LOOK_S)
        os.write(fd, line)
    except TimeoutError:
        raise TimedOutError(f"the monitor does not read {control}") from None
    except BrokenPipeError:
        raise WrongStateError("the monitor has just ended") from None
    finally:
        os.close(fd)


def _unread(fd: int) -> int:
    """Bytes in the FIFO (man 7 pipe)."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)
