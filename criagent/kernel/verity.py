# SPDX-License-Identifier: Apache-2.0
"""fs-verity: the kernel checks what is read of a file against a digest of the whole of it.

Kernel documentation, filesystems/fsverity. Synchronous, no policy.
"""

from __future__ import annotations

import errno
import fcntl
import struct

_ENABLE, _MEASURE = 0x40806685, 0xC0046686  # FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY
_VERSION, _SHA256 = 1, 1
_BLOCK = 4096
_NOT_ENABLED = {errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP}


def enable(fd: int) -> None:
    """Make the file read-only for ever, and checked when it is read.

    `fd` is open for reading and nobody has the file open for writing. Raises OSError: ENOTTY,
    EOPNOTSUPP = not on this kernel or file system.
    """
    fcntl.ioctl(fd, _ENABLE, struct.pack("=IIIIQII96x", _VERSION, _SHA256, _BLOCK, 0, 0, 0, 0))


def measure(fd: int) -> str:
    """The file's digest in hexadecimal; "" = fs-verity is not enabled for it. Raises OSError."""
    answer = bytearray(struct.pack("=HH64x", 0, 64))
    try:
        fcntl.ioctl(fd, _MEASURE, answer)
    except OSError as exc:
        if exc.errno in _NOT_ENABLED:
            return ""
        raise
    _, size = struct.unpack_from("=HH", answer)
    return answer[4 : 4 + size].hex()
