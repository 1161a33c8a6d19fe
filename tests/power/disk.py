# SPDX-License-Identifier: Apache-2.0
"""python3 -m tests.power.disk DIRECTORY JOURNAL SIZE [IMAGE]: a disk that records its writes.

DIRECTORY becomes a FUSE file system of three files: `disk`, the backing file of a loop device;
`mark`, where each line that is written is one mark; and `fault`, where a line makes the disk answer
EIO from then on: "all" to everything, "read" to reads, "none" to nothing, any other text to writes
that contain it. JOURNAL gets every write, flush and mark in the order in which they were answered.
A loop device hands the flushes of its file system on as fsync(2), so what a real disk may still
hold in its cache is known: the writes since the last flush. At first it has the content of IMAGE,
which it does not change, or zeros.

It ends when DIRECTORY is unmounted. Linux: include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from criagent.kernel.mount import mount
from tests.power.journal import FLUSH, MARK, WRITE, Journal

_ROOT, _DISK, _MARK, _FAULT = 1, 2, 3, 4
_NODES = {b"disk": _DISK, b"mark": _MARK, b"fault": _FAULT}
_NO_FAULT = b"none"
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _FLUSH_FILE, _INIT, _INTERRUPT, _BATCH_FORGET = (
    17, 18, 20, 25, 26, 36, 42,
)  # fmt: skip
_ASYNC_READ, _BIG_WRITES, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 22
_MAX_WRITE = 1 << 20
_HEADER = struct.Struct("<IIQQIIII")
_FOREVER = 1 << 30  # seconds that the kernel may keep an answer


class Disk:
    """Answers the kernel's requests from a sparse file beside the journal."""

    def __init__(self, connection: int, journal: Path, size: int, image: Path | None) -> None:
        self._connection = connection
        self._journal = Journal.create(journal)
        self._size = size
        self._fault = _NO_FAULT
        content = journal.with_suffix(".content")
        content.unlink(missing_ok=True)
        if image is not None:
            subprocess.run(["cp", "--sparse=always", image, content], check=True)
        self._content = os.open(content, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content.unlink()
        os.ftruncate(self._content, size)
        self._answers: dict[int, Callable[[int, memoryview], bytes]] = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: lambda node, _: struct.pack("<QII", _FOREVER, 0, 0) + self._attributes(node),
            _SETATTR: lambda node, _: struct.pack("<QII", _FOREVER, 0, 0) + self._attributes(node),
            _OPEN: lambda _, __: struct.pack("<QII", 0, 0, 0),
            _READ: self._read,
            _WRITE: self._write,
            _FSYNC: self._fsync,
            _STATFS: lambda _, __: struct.pack("<5QIII28x", 0, 0, 0, 2, 0, 4096, 255, 4096),
            _RELEASE: lambda _, __: b"",
            _FLUSH_FILE: lambda _, __: b"",
        }

    def serve(self) -> None:
        """Answer until the file system is unmounted."""
        buffer = bytearray(_MAX_WRITE + (64 << 10))
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._connection, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise
            _, operation, unique, node, *_ = _HEADER.unpack_from(buffer)
            if operation in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            answer = self._answers.get(operation)
            try:
                if answer is None:
                    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
                body, status = answer(node, view[_HEADER.size : length]), 0
            except OSError as error:
                body, status = b"", -(error.errno or errno.EIO)
            os.writev(self._connection, [struct.pack("<IiQ", 16 + len(body), status, unique), body])

    def _init(self, _: int, __: memoryview) -> bytes:
        flags = _ASYNC_READ | _BIG_WRITES | _MAX_PAGES
        pages = _MAX_WRITE // 4096
        return struct.pack(
            "<4I2H2I2H2I24x", 7, 31, 1 << 17, flags, 64, 48, _MAX_WRITE, 1, pages, 0, 0, 0
        )

    def _lookup(self, _: int, request: memoryview) -> bytes:
        node = _NODES.get(bytes(request).split(b"\0", 1)[0])
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return struct.pack("<4QII", node, 0, _FOREVER, _FOREVER, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == _ROOT else (0o100600, self._size)
        if node in {_MARK, _FAULT}:
            size = 0
        return struct.pack(
            "<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def _read(self, _: int, request: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", request)
        self._fail(self._fault in {b"all", b"read"})
        return os.pread(self._content, size, offset)

    def _write(self, node: int, request: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", request)
        data = request[40 : 40 + size]
        if node == _FAULT:
            self._fault = bytes(data).strip()
        elif node == _MARK:
            self._journal.append(MARK, 0, data)
        else:
            faulty = self._fault not in {_NO_FAULT, b"read"}
            self._fail(faulty and (self._fault == b"all" or self._fault in bytes(data)))
            os.pwrite(self._content, data, offset)
            self._journal.append(WRITE, offset, data)
        return struct.pack("<II", size, 0)

    def _fail(self, now: bool) -> None:
        if now:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _fsync(self, node: int, _: memoryview) -> bytes:
        if node == _DISK:
            self._fail(self._fault == b"all")
            self._journal.append(FLUSH, 0, memoryview(b""))
        return b""


def main(directory: str, journal: str, size: str, image: str = "") -> None:
    """Mount, say so on standard output, serve."""
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other"
    mount("criagent-disk", directory, "fuse", data=options)
    disk = Disk(connection, Path(journal), int(size), Path(image) if image else None)
    print("mounted", flush=True)
    disk.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
