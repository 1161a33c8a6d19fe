# SPDX-License-Identifier: Apache-2.0
"""tar headers: ustar, GNU long names, pax, base-256 numbers and sparse files, with limits.

POSIX.1-2017 pax(1) and the GNU tar manual, "Basic Tar Format" and "Storing Sparse Files". Where
they leave room, a header is read as by Go's archive/tar, which reads most layers. tarfile of the
standard library has no limits and reads names and attributes as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from criagent.image.tar.decompress import BadLayerError, LayerStream
from criagent.image.tar.names import shown

BLOCK = 512
_MAX_EXTENDED = 1 << 20  # bytes of one pax or long-name record
_MAX_EXTENDED_ALL = 2 << 30  # bytes of all of them
_MAX_RECORDS = 10_000  # of one pax header
_MAX_GLOBAL = 1_000  # pax records that are in force for all members
_MAX_ENTRIES = 4_000_000
_MAX_SPARSE = 100_000
_MAX_SIZE = 1 << 46
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # of a Linux device number
_MAX_ID = 2**32 - 1
_XATTR = b"SCHILY.xattr."
_INTEGER = re.compile(rb"[+-]?\d{1,20}")
_TIME = re.compile(rb"([+-]?)(\d{1,19})(?:\.(\d*))?")
_ZERO = bytes(BLOCK)
# From the mode to the type, as nearly all archives have them. Of a regular file or a directory.
_COMMON = re.compile(
    rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})[\0 ]([0-7]{11})[\0 ]([0-7]{6})\0 ([05])\0"
)

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_WITHOUT_DATA = frozenset({HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO})


@dataclass(slots=True, kw_only=True)
class Entry:
    """One member. `size` counts the bytes that follow in the stream."""

    kind: bytes
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None  # (offset, length) of the data pieces
    real_size: int = 0


def entries(stream: LayerStream) -> Iterator[Entry]:
    """The members of `stream`; the caller consumes each one's `size` bytes, we the padding.

    Raises BadLayerError for anything malformed or beyond the limits.
    """
    extensions = _Extensions()
    count = 0
    while True:
        header = stream.read(BLOCK)
        if not header or header == _ZERO:
            return
        if len(header) < BLOCK:
            raise BadLayerError("the archive ends within a header")
        entry = None if extensions.any else _common(header)
        if entry is None:
            _verify(header)
            if extensions.take(stream, header):
                continue
            entry, recorded = _member(stream, header, extensions)
        else:
            recorded = entry.size
        count += 1
        if count > _MAX_ENTRIES:
            raise BadLayerError(f"the archive has more than {_MAX_ENTRIES} members")
        end = stream.read_bytes + entry.size
        if entry.kind == REGULAR:
            end += -recorded % BLOCK
        yield entry
        stream.skip(end - stream.read_bytes)
        extensions.next_member()


class _Extensions:
    """What headers in front of a member say about it."""

    def __init__(self) -> None:
        self.shared: dict[bytes, bytes] = {}
        self.pax: dict[bytes, bytes] = {}
        self.long_name: bytes | None = None
        self.long_link: bytes | None = None
        self._shared_size = 0
        self._total = 0
        self._size = 0

    @property
    def any(self) -> bool:
        """Whether the next member's own header does not say everything."""
        return bool(self.pax or self.shared or self.long_name or self.long_link)

    def next_member(self) -> None:
        """Forget what was said about one member only."""
        if not self._size:
            return
        self.pax = {}
        self.long_name = self.long_link = None
        self._size = self._shared_size

    def take(self, stream: LayerStream, header: bytes) -> bool:
        """Read an extending header; False when `header` is a member's own."""
        kind = header[156:157]
        if kind not in {b"x", b"X", b"g", b"L", b"K"}:
            return False
        data = _extended(stream, header)
        self._size += len(data)
        self._total += len(data)
        if self._size > 2 * _MAX_EXTENDED or self._total > _MAX_EXTENDED_ALL:
            raise BadLayerError(f"extended headers are larger than {2 * _MAX_EXTENDED} bytes")
        match kind:
            case b"x" | b"X":
                self.pax.update(parse_pax(data))
            case b"g":
                self.shared.update(parse_pax(data))
                if len(self.shared) > _MAX_GLOBAL:
                    raise BadLayerError(f"more than {_MAX_GLOBAL} global pax records")
                self._shared_size = sum(len(k) + len(v) for k, v in self.shared.items())
            case b"L":
                self.long_name = data.rstrip(b"\0")
            case _:
                self.long_link = data.rstrip(b"\0")
        return True

    def records(self) -> dict[bytes, bytes]:
        """The pax records in force for the next member.

        An empty value deletes a record (POSIX); extended attributes alone may be empty.
        """
        if not self.shared and not self.pax:
            return self.pax
        both = {**self.shared, **self.pax}
        return {key: value for key, value in both.items() if value or key.startswith(_XATTR)}


def _common(header: bytes) -> Entry | None:
    """The member of a header that has nothing unusual, None for any other: what `_entry` gives."""
    match = _COMMON.match(header, 100)
    if match is None or header[345]:
        return None
    mode, uid, gid, size, mtime, checksum, kind = match.groups()
    if sum(header.translate(None, b"\0")) - sum(checksum) + 7 * 32 != int(checksum, 8):
        return None
    return Entry(
        kind=kind,
        name=header[:100].split(b"\0", 1)[0],
        link=b"",
        mode=int(mode, 8) & 0o7777,
        uid=int(uid, 8),
        gid=int(gid, 8),
        mtime_ns=int(mtime, 8) * 10**9,
        size=int(size, 8) if kind == REGULAR else 0,
    )


def _member(stream: LayerStream, header: bytes, extensions: _Extensions) -> tuple[Entry, int]:
    """As `_with_map`; errors name the member."""
    pax = extensions.records()
    name = pax.get(b"path") or extensions.long_name or _header_name(header)
    try:
        return _with_map(stream, header, pax, name, extensions.long_link)
    except BadLayerError as exc:
        raise BadLayerError(f"entry {shown(name)}: {exc}") from None


def _with_map(
    stream: LayerStream,
    header: bytes,
    pax: dict[bytes, bytes],
    name: bytes,
    long_link: bytes | None,
) -> tuple[Entry, int]:
    """The member with its sparse map, and its size in the archive, which decides the padding."""
    entry = _entry(header, pax, name, long_link)
    recorded = entry.size
    if header[156:157] == b"S":
        entry.sparse = _old_sparse(stream, header)
        entry.real_size = number(header[483:495])
    elif entry.kind == REGULAR and pax:
        _new_sparse(stream, entry, pax)
    if entry.sparse is not None:
        _check_sparse(entry)
    return entry, recorded


def number(field_bytes: bytes) -> int:
    """An octal or base-256 header number. Raises BadLayerError."""
    if field_bytes[0] & 0x80:
        value = int.from_bytes(bytes([field_bytes[0] & 0x3F]) + field_bytes[1:], "big")
        if field_bytes[0] & 0x40:
            value -= 1 << (8 * len(field_bytes) - 2)
        return value
    text = field_bytes.strip(b" \0")
    if not text.isdigit():
        text = text.split(b"\0", 1)[0].rstrip()
    if not text:
        return 0
    try:
        if text.isdigit():  # int() takes signs, "_" and "0o" too
            return int(text, 8)
    except ValueError:
        pass
    raise BadLayerError(f"malformed number {field_bytes!r} in a header")


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header. Raises BadLayerError."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = count = 0
    while at < len(data):
        count += 1
        if count > _MAX_RECORDS:
            raise BadLayerError(f"a pax header has more than {_MAX_RECORDS} records")
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise BadLayerError("malformed pax record")
        length = int(digits)
        end = at + length
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or length < space - at + 3 or not equals or data[end - 1] != 10:
            raise BadLayerError("malformed pax record")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            sparse.append(value)  # format 0.0 repeats its keys
            count -= 1
        records[key] = value
        at = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _verify(header: bytes) -> None:
    """The header checksum, unsigned or (old Sun tar) signed."""
    recorded = number(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    total = sum(rest.translate(None, b"\0"))  # most of a header is zeros
    if recorded != total and recorded != total - 256 * sum(1 for byte in rest if byte > 127):
        raise BadLayerError("the checksum of a header is wrong")


def _extended(stream: LayerStream, header: bytes) -> bytes:
    size = number(header[124:136])
    if not 0 <= size <= _MAX_EXTENDED:
        raise BadLayerError(f"an extended header is larger than {_MAX_EXTENDED} bytes")
    data = stream.read(size)
    if len(data) < size:
        raise BadLayerError("the archive ends within a header")
    stream.skip(-size % BLOCK)
    return data


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _entry(header: bytes, pax: dict[bytes, bytes], name: bytes, long_link: bytes | None) -> Entry:
    kind = header[156:157]
    if kind in {b"\0", b"7", b"S"}:
        kind = DIRECTORY if kind == b"\0" and name.endswith(b"/") else REGULAR
    size = _pax_number(pax, b"size", number(header[124:136]))
    if not 0 <= size <= _MAX_SIZE:
        raise BadLayerError(f"invalid size {size}")
    if kind in _WITHOUT_DATA:
        size = 0  # POSIX: no data follows, whatever the header says
    entry = Entry(
        kind=kind,
        name=pax.get(b"GNU.sparse.name") or name,
        link=pax.get(b"linkpath") or long_link or header[157:257].split(b"\0", 1)[0],
        mode=number(header[100:108]) & 0o7777,
        uid=_owner(pax, b"uid", header[108:116]),
        gid=_owner(pax, b"gid", header[116:124]),
        mtime_ns=_pax_time(pax, number(header[136:148])),
        size=size,
    )
    if pax:
        entry.xattrs = {k[len(_XATTR) :]: v for k, v in pax.items() if k.startswith(_XATTR)}
    if b"\0" in entry.name + entry.link or b"\0" in b"".join(entry.xattrs):
        raise BadLayerError("a name contains a NUL byte")
    if kind in {CHAR, BLOCK_DEVICE}:
        entry.major, entry.minor = number(header[329:337]), number(header[337:345])
        if not (0 <= entry.major <= _MAX_MAJOR and 0 <= entry.minor <= _MAX_MINOR):
            raise BadLayerError(f"invalid device {entry.major}:{entry.minor}")
    return entry


def _owner(pax: dict[bytes, bytes], key: bytes, field_bytes: bytes) -> int:
    """A user or group ID as Go and chown(2) take it: cut to 32 bits; -1 leaves root as owner."""
    value = pax.get(key)
    if value is not None and not _INTEGER.fullmatch(value):
        raise BadLayerError(f"malformed pax {key.decode()} {value[:40]!r}")
    found = number(field_bytes) if value is None else int(value)
    if not -(1 << 31) <= found <= _MAX_ID:
        raise BadLayerError(f"invalid {key.decode()} {found}")
    return 0 if found & _MAX_ID == _MAX_ID else found & _MAX_ID


def _pax_number(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = pax.get(key)
    if value is None:
        return default
    if not value.isdigit() or len(value) > 20:
        raise BadLayerError(f"malformed pax number {value[:40]!r}")
    return int(value)


def _pax_time(pax: dict[bytes, bytes], seconds: int) -> int:
    value = pax.get(b"mtime")
    if value is None:
        return seconds * 10**9
    match = _TIME.fullmatch(value)
    if match is None:
        raise BadLayerError(f"malformed pax time {value[:40]!r}")
    sign, whole, part = match.groups(b"")
    found = int(whole) * 10**9 + int((part + b"000000000")[:9])
    return -found if sign == b"-" else found


def _pairs(numbers: list[bytes]) -> list[tuple[int, int]]:
    if len(numbers) > 2 * _MAX_SPARSE or len(numbers) % 2:
        raise BadLayerError("the map of a sparse file is malformed or too long")
    if not all(n.isdigit() and len(n) < 20 for n in numbers):
        raise BadLayerError("the map of a sparse file is malformed")
    values = [int(n) for n in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


def _new_sparse(stream: LayerStream, entry: Entry, pax: dict[bytes, bytes]) -> None:
    """Formats 0.0, 0.1 and 1.0 of GNU tar's pax records."""
    if b"GNU.sparse.map" in pax:
        entry.sparse = _pairs(pax[b"GNU.sparse.map"].split(b","))
    size = _pax_number(pax, b"GNU.sparse.size", 0)
    entry.real_size = _pax_number(pax, b"GNU.sparse.realsize", size)
    if entry.sparse is None and pax.get(b"GNU.sparse.major") == b"1":
        _sparse_1_0(stream, entry)


def _old_sparse(stream: LayerStream, header: bytes) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    block, start, count, more = header, 386, 4, header[482]
    for _ in range(_MAX_SPARSE // 21 + 2):
        for index in range(count):
            at = start + 24 * index
            if not block[at]:
                break
            pieces.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
        if not more:
            return pieces
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise BadLayerError("the archive ends within a header")
        start, count, more = 0, 21, block[504]
    raise BadLayerError("the map of a sparse file is too long")


def _sparse_1_0(stream: LayerStream, entry: Entry) -> None:
    """The map stands in front of the data, as decimal lines padded to a block."""
    text = b""

    def line() -> int:
        nonlocal text
        while b"\n" not in text:
            block = stream.read(BLOCK)
            if len(block) < BLOCK or len(text) > BLOCK:
                raise BadLayerError("the map of a sparse file is malformed")
            entry.size -= BLOCK
            text += block
        head, _, text = text.partition(b"\n")
        if not head.isdigit() or len(head) > 20:
            raise BadLayerError("the map of a sparse file is malformed")
        return int(head)

    count = line()
    if count > _MAX_SPARSE:
        raise BadLayerError("the map of a sparse file is too long")
    entry.sparse = [(line(), line()) for _ in range(count)]


def _check_sparse(entry: Entry) -> None:
    end = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise BadLayerError("the pieces of a sparse file overlap")
        end = offset + length
    if end > entry.real_size or entry.real_size > _MAX_SIZE:
        raise BadLayerError("the pieces of a sparse file lie beyond its end")
    if sum(length for _, length in entry.sparse or ()) != entry.size:
        raise BadLayerError("the pieces of a sparse file do not add up to its data")
