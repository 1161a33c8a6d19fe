# SPDX-License-Identifier: Apache-2.0
"""tar archives for the fuzz targets: hostile ones, and checksums made right after mutation."""

from __future__ import annotations

import tarfile
from random import Random

NAMES = ["a", "b", "c", "d", "l", "m", "a", "b", "l"]
WHITEOUTS = [".wh.a", ".wh.b", ".wh.l", ".wh.d", ".wh..wh..opq", ".wh..wh..opq", ".wh..wh.plnk"]
TOUGH_NAMES = [
    ".", "..", "", ".wh.", ".wh..", ".wh...", "proc", "x" * 255, "x" * 256, ".wh." + "y" * 252,
    "outside", "keep",
]  # fmt: skip
TARGETS = [
    "/", "..", "../..", "../../outside", "../../../outside/keep", "/proc/self/root", "/dev/null",
    "/proc/self/cwd", "a", "b", "./c", "l", "m", "l/m", "a/../b", "/a", "//a//b", "c/d", "new/er",
    "/proc/self/fd/0", ".", "../" * 60, "a/" * 200, "x" * 300,
]  # fmt: skip
KINDS = [
    *[tarfile.DIRTYPE] * 3, *[tarfile.REGTYPE] * 4, *[tarfile.SYMTYPE] * 4, *[tarfile.LNKTYPE] * 2,
    tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"7",
]  # fmt: skip
ATTRIBUTES = [
    "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.x",
    "user.overlay.opaque", "security.capability", "system.posix_acl_access", "user.a", "",
]  # fmt: skip
RECORDS = ["path", "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.map", "GNU.sparse.major",
           "GNU.sparse.name", "GNU.sparse.size", "hdrcharset"]  # fmt: skip
VALUES = ["y", "", "../../outside/keep", "0,5", "1", "9" * 30, "-1", "l/keep", "1.5", "0"]


def hostile(rnd: Random, *, tough: float, links: bool = True) -> bytes:
    """Entries that hide, replace and lead through one another; `tough` is how odd they are."""
    kinds = KINDS if links else [kind for kind in KINDS if kind != tarfile.SYMTYPE]
    parts = [_member(rnd, tough, kinds) for _ in range(rnd.randint(1, 25))]
    return b"".join(parts) + bytes(1024)


def _member(rnd: Random, tough: float, kinds: list[bytes]) -> bytes:
    names = [rnd.choice(NAMES) for _ in range(rnd.randint(1, 4))]
    if rnd.random() < 0.25:
        names[-1] = rnd.choice(WHITEOUTS)
    if rnd.random() < tough:
        names[rnd.randrange(len(names))] = rnd.choice([*TOUGH_NAMES, *WHITEOUTS])
    entry = tarfile.TarInfo(rnd.choice(["", "", "", "/", "./"]) + "/".join(names))
    entry.type = rnd.choice(kinds if rnd.random() > tough / 10 else [b"S", b"g", b"Z", b"V"])
    entry.mode = rnd.choice([0o644, 0o755, 0o4777, 0o1700, 0])
    entry.mtime = rnd.choice([0, 5, 2**33, -5]) if rnd.random() < tough else 5
    entry.uid = rnd.choice([0, 1000, 2**32 - 1, 2**40, -1]) if rnd.random() < tough else 7
    content = b""
    if entry.type in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        entry.linkname = rnd.choice(TARGETS)
    elif entry.type == tarfile.REGTYPE:
        content = rnd.choice([b"", b"content", rnd.randbytes(600)])
        entry.size = len(content)
    elif entry.type in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
        entry.devmajor, entry.devminor = rnd.choice([(0, 0), (1, 3), (8, 0)])
    if rnd.random() < 0.1:
        entry.pax_headers = {"SCHILY.xattr." + rnd.choice(ATTRIBUTES): rnd.choice(VALUES)}
    if rnd.random() < tough / 2:
        entry.pax_headers = {rnd.choice(RECORDS): rnd.choice(VALUES)}
    form = rnd.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    header = entry.tobuf(form, "utf-8", "surrogateescape")  # type: ignore[arg-type]
    return header + content + bytes(-len(content) % 512)


def sealed(data: bytes) -> bytes:
    """The archive with right checksums; without them nothing gets past the first check."""
    found = bytearray(data)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar":
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)
