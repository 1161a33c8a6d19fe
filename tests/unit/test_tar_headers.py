# SPDX-License-Identifier: Apache-2.0
"""tar headers as Python, GNU tar and hostile authors write them."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criagent.image.tar import headers as tar_headers
from criagent.image.tar.decompress import BadLayerError, LayerStream
from criagent.image.tar.headers import Entry, number, parse_pax

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    """The members, with what follows each."""
    stream = LayerStream(io.BytesIO(data))
    try:
        found = [(entry, stream.read(entry.size)) for entry in tar_headers.entries(stream)]
        stream.drain()
        return found
    finally:
        stream.close()


def info(name: str = "name", kind: bytes = tarfile.REGTYPE, **facts: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in facts.items():
        setattr(made, key, value)
    return made


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry, content in members:
            entry.size = len(content) or entry.size
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def sealed(header: bytes | bytearray) -> bytes:
    """The header block with its right checksum."""
    block = bytearray(header)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def patched(at: int, value: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """An archive of one member with some bytes of its header changed."""
    block = bytearray(info(kind=kind).tobuf(tarfile.USTAR_FORMAT))
    block[at : at + len(value)] = value
    return sealed(block) + bytes(1024)


def pax(kind: bytes, records: bytes) -> bytes:
    """An extended header."""
    header = info("x", kind, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    return header + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


@pytest.mark.parametrize("form", FORMATS)
def test_all_kinds_in_all_formats(form: int) -> None:
    members = [
        (info("dir/", tarfile.DIRTYPE, mode=0o1755), b""),
        (info("dir/file", uid=1, gid=2, mtime=3, mode=0o4755), b"content"),
        (info("dir/sym", tarfile.SYMTYPE, linkname="../x"), b""),
        (info("dir/hard", tarfile.LNKTYPE, linkname="dir/file"), b""),
        (info("null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (info("disk", tarfile.BLKTYPE, devmajor=8, devminor=0), b""),
        (info("pipe", tarfile.FIFOTYPE), b""),
        (info("last"), b"x" * 512),
    ]
    found = read(tar(*members, form=form))
    assert [e.name.rstrip(b"/") for e, _ in found] == [
        b"dir", b"dir/file", b"dir/sym", b"dir/hard", b"null", b"disk", b"pipe", b"last"
    ]  # fmt: skip
    entry, content = found[1]
    assert (entry.uid, entry.gid, entry.mtime_ns, entry.mode) == (1, 2, 3 * 10**9, 0o4755)
    assert content == b"content"
    assert [e.link for e, _ in found[2:4]] == [b"../x", b"dir/file"]
    assert (found[4][0].major, found[4][0].minor) == (1, 3)


@given(
    name=st.text("ab./ä", min_size=1, max_size=120),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE]),
    numbers=st.tuples(*[st.integers(0, limit) for limit in (0o7777777, 0o7777777, 8**11 - 1)]),
    mode=st.integers(0, 0o7777777),
    content=st.binary(max_size=600),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
)
def test_a_header_says_the_same_behind_others(
    name: str,
    kind: bytes,
    numbers: tuple[int, int, int],
    mode: int,
    content: bytes,
    form: int,
) -> None:
    uid, gid, mtime = numbers
    facts = info(name, kind, uid=uid, gid=gid, mtime=mtime, mode=mode)
    data = tar((facts, content if kind == tarfile.REGTYPE else b""), form=form)
    assert read(data) == read(pax(b"g", record(b"comment", b"x")) + data)


@pytest.mark.parametrize("at", [0, 99, 100, 107, 124, 136, 148, 153, 157, 257, 345, 511])
def test_a_changed_byte_of_a_header_is_noticed(at: int) -> None:
    data = bytearray(tar((info("file", mode=0o644), b"content"), form=tarfile.USTAR_FORMAT))
    data[at] ^= 1
    with pytest.raises(BadLayerError):
        read(bytes(data))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_numbers(form: int) -> None:
    name, link = "n/" * 300 + "end", "l" * 4000
    large = 2**32 - 2
    found = read(tar((info(name, tarfile.SYMTYPE, linkname=link, uid=large), b""), form=form))
    assert (found[0][0].name, found[0][0].link) == (name.encode(), link.encode())
    assert found[0][0].uid == large


def test_extensions_are_for_one_member_only() -> None:
    first = info("ä" * 200, pax_headers={"SCHILY.xattr.user.a": "b", "mtime": "1.5"})
    found = read(tar((first, b"1"), (info("plain"), b"2")))
    assert found[0][0].xattrs == {b"user.a": b"b"}
    assert found[0][0].mtime_ns == 1_500_000_000
    assert (found[1][0].name, found[1][0].xattrs) == (b"plain", {})


def test_global_records_last() -> None:
    shared = pax(b"g", record(b"uid", b"77") + record(b"comment", b"x"))
    data = shared + tar((info("a", uid=1), b""), (info("b"), b""))
    assert [entry.uid for entry, _ in read(data)] == [77, 77]


def test_data_after_a_link_is_none() -> None:
    """POSIX: a link has no data, whatever its size says."""
    link = sealed(info("l", tarfile.SYMTYPE, linkname="x", size=512).tobuf(tarfile.USTAR_FORMAT))
    found = read(link + tar((info("after"), b"y")))
    assert [(e.name, c) for e, c in found] == [(b"l", b""), (b"after", b"y")]


def test_sparse_files_of_every_format() -> None:
    old = bytearray(info("old", size=4).tobuf(tarfile.GNU_FORMAT))
    old[156:157] = b"S"
    old[386:410] = b"%011o\0%011o\0" % (1000, 4)
    old[483:495] = b"%011o\0" % 5000
    padded = b"data" + bytes(508)
    head = record(b"GNU.sparse.major", b"0") + record(b"GNU.sparse.minor", b"0")
    zero = head + record(b"GNU.sparse.size", b"5000")
    zero += record(b"GNU.sparse.offset", b"1000") + record(b"GNU.sparse.numbytes", b"4")
    one = record(b"GNU.sparse.size", b"5000") + record(b"GNU.sparse.map", b"1000,4")
    new = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
    new += record(b"GNU.sparse.name", b"real") + record(b"GNU.sparse.realsize", b"5000")
    map_block = b"1\n1000\n4\n"
    data = sealed(old) + padded
    for records in (zero, one):
        data += pax(b"x", records) + info("x", size=4).tobuf(tarfile.USTAR_FORMAT) + padded
    data += pax(b"x", new) + info("x", size=516).tobuf(tarfile.USTAR_FORMAT)
    data += map_block + bytes(512 - len(map_block)) + padded + tar((info("after"), b"z"))
    found = read(data)
    assert [(e.sparse, e.real_size, c) for e, c in found[:4]] == [([(1000, 4)], 5000, b"data")] * 4
    assert found[3][0].name == b"real"
    assert found[4][1] == b"z"


HUGE = b"\x80" + b"\xff" * 11
BAD: dict[str, Callable[[], bytes]] = {
    "checksum": lambda: patched(0, b"x").replace(b"x", b"y", 1),
    "cut header": lambda: patched(0, b"x")[:100],
    "cut content": lambda: patched(124, b"%011o" % 5000),
    "size is text": lambda: patched(124, b"text"),
    "size below zero": lambda: patched(124, b"\xff" * 12),
    "size beyond everything": lambda: patched(124, HUGE),
    "mode is text": lambda: patched(100, b"rwxrwxr"),
    "device below zero": lambda: patched(329, b"\xff" * 8, tarfile.CHRTYPE),
    "device too large": lambda: patched(329, b"\x80" + b"\xff" * 7, tarfile.BLKTYPE),
    "minor too large": lambda: patched(337, b"7777777\0", tarfile.CHRTYPE),
    "pax without length": lambda: pax(b"x", b"a=b\n"),
    "pax too long": lambda: pax(b"x", b"99 a=b\n"),
    "pax too short": lambda: pax(b"x", b"2 a=b\n"),
    "pax of length 0": lambda: pax(b"x", b"0 a=b\n"),
    "pax without equals": lambda: pax(b"x", b"5 ab\n"),
    "pax without newline": lambda: pax(b"x", b"6 a=bc"),
    "pax with signs": lambda: pax(b"x", b"+6 a=b\n"),
    "pax size": lambda: pax(b"x", record(b"size", b"-1")) + patched(0, b"x"),
    "pax size of many digits": lambda: pax(b"x", record(b"size", b"9" * 5000)) + patched(0, b"x"),
    "pax time": lambda: pax(b"x", record(b"mtime", b"noon")) + patched(0, b"x"),
    "extended is large": lambda: info("x", b"x", size=2 << 20).tobuf() + bytes(3 << 20),
    "extended below zero": lambda: patched(124, b"\xff" * 12, b"x"),
    "extended is cut": lambda: pax(b"x", record(b"k", b"v" * 2000))[:1500],
    "link with NUL": lambda: pax(b"x", record(b"linkpath", b"a\0b")) + patched(0, b"x", b"2"),
    "name with NUL": lambda: pax(b"x", record(b"path", b"a\0b")) + patched(0, b"x"),
    "xattr with NUL": lambda: pax(b"x", record(b"SCHILY.xattr.user.a\0b", b"")) + patched(0, b"x"),
    "sparse overlap": lambda: (
        pax(b"x", record(b"GNU.sparse.map", b"0,4,2,4") + record(b"GNU.sparse.size", b"9"))
        + patched(124, b"%011o" % 8)
    ),
    "sparse beyond end": lambda: (
        pax(b"x", record(b"GNU.sparse.map", b"8,4") + record(b"GNU.sparse.size", b"9"))
        + patched(124, b"%011o" % 4)
    ),
    "sparse sum": lambda: (
        pax(b"x", record(b"GNU.sparse.map", b"0,4") + record(b"GNU.sparse.size", b"9"))
        + patched(124, b"%011o" % 5)
    ),
    "sparse odd": lambda: pax(b"x", record(b"GNU.sparse.map", b"0,4,5")) + patched(0, b"x"),
    "pax uid": lambda: pax(b"x", record(b"uid", b"1_0")) + patched(0, b"x"),
    "pax uid is text": lambda: pax(b"x", record(b"uid", b"root")) + patched(0, b"x"),
    "pax gid beyond 32 bits": lambda: pax(b"x", record(b"gid", b"4294967296")) + patched(0, b"x"),
    "uid beyond 32 bits": lambda: patched(108, b"\x80\0\0\1\0\0\0\0"),
    "uid far below zero": lambda: patched(108, b"\xff\0\0\0\0\0\0\0"),
    "mode with a prefix": lambda: patched(100, b"0o00644"),
    "mode with a sign": lambda: patched(100, b"-000644"),
    "mode with a stroke": lambda: patched(100, b"00_0644"),
    "pax time with exponent": lambda: pax(b"x", record(b"mtime", b"1.7e9")) + patched(0, b"x"),
    "pax time of many digits": lambda: pax(b"x", record(b"mtime", b"1" * 30)) + patched(0, b"x"),
    "pax time with stroke": lambda: pax(b"x", record(b"mtime", b"1_0")) + patched(0, b"x"),
    "pax of many records": lambda: pax(b"x", record(b"a", b"") * 10_001) + patched(0, b"x"),
    "global of many records": lambda: (
        pax(b"g", b"".join(record(b"%d" % n, b"v") for n in range(1001))) + patched(0, b"x")
    ),
    "old sparse chain without end": lambda: (
        patched(482, b"\1", b"S")[:512] + (bytes(504) + b"\1" + bytes(7)) * 6000
    ),
    "sparse text": lambda: pax(b"x", record(b"GNU.sparse.map", b"a,b")) + patched(0, b"x"),
    "sparse 1.0 without map": lambda: (
        pax(b"x", record(b"GNU.sparse.major", b"1")) + patched(0, b"x")[:512] + b"x" * 2048
    ),
    "sparse 1.0 with too many": lambda: (
        pax(b"x", record(b"GNU.sparse.major", b"1")) + patched(0, b"x")[:512] + b"999999\n" * 500
    ),
    "extensions without end": lambda: (
        pax(b"x", record(b"k", b"v" * 500_000)) * 6 + patched(0, b"x")
    ),
    "global without end": lambda: b"".join(
        pax(b"g", record(b"key%d" % n, b"v" * 500_000)) + patched(0, b"x")[:512] for n in range(6)
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_archives(name: str) -> None:
    with pytest.raises(BadLayerError):
        read(BAD[name]())


EMPTY = b"".join(
    record(key, b"")
    for key in (
        b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"ctime", b"uname",
        b"hdrcharset", b"GNU.sparse.map", b"GNU.sparse.major", b"GNU.sparse.name",
    )
)  # fmt: skip


def test_an_empty_pax_value_leaves_the_header_as_it_is() -> None:
    """POSIX: it deletes the record, global ones too."""
    shared = pax(b"g", record(b"uid", b"77") + record(b"mtime", b"9") + record(b"path", b"g"))
    data = shared + pax(b"x", EMPTY) + tar((info("n", uid=5, gid=6, mtime=7), b"content"))
    ((entry, content),) = read(data)
    assert (entry.name, entry.uid, entry.gid, entry.mtime_ns) == (b"n", 5, 6, 7 * 10**9)
    assert content == b"content"


def test_an_extended_attribute_may_be_empty() -> None:
    data = pax(
        b"x", record(b"SCHILY.xattr.user.a", b"") + record(b"LIBARCHIVE.xattr.user.b", b"YQ")
    )
    ((entry, _),) = read(data + tar((info(), b"")))
    assert entry.xattrs == {b"user.a": b""}


@pytest.mark.parametrize("charset", [b"BINARY", b"ISO-IR 10646 2000 UTF-8", b"ISO-IR 8859 1 1998"])
def test_names_are_bytes_in_every_charset(charset: bytes) -> None:
    data = pax(b"x", record(b"hdrcharset", charset) + record(b"path", b"caf\xe9"))
    assert read(data + tar((info(), b"")))[0][0].name == b"caf\xe9"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"-1.5", -1_500_000_000),
        (b"-0.25", -250_000_000),
        (b"+1.", 1_000_000_000),
        (b"1.1234567899", 1_123_456_789),
        (b"9" * 18, (10**18 - 1) * 10**9),
    ],
)
def test_pax_times(text: bytes, ns: int) -> None:
    ((entry, _),) = read(pax(b"x", record(b"mtime", text)) + tar((info(), b"")))
    assert entry.mtime_ns == ns


def test_times_that_nobody_reads_may_be_anything() -> None:
    data = pax(b"x", record(b"atime", b"noon") + record(b"ctime", b"-1") + record(b"comment", b"x"))
    assert len(read(data + tar((info(), b"")))) == 1


OWNERS = [(b"-1", 0), (b"4294967295", 0), (b"-2", 2**32 - 2), (b"+5", 5), (b"2147483648", 1 << 31)]


@pytest.mark.parametrize(("text", "uid"), OWNERS)
def test_owners_are_cut_to_32_bits(text: bytes, uid: int) -> None:
    """As Go and chown(2) take them; -1 leaves the owner as it is, which is root."""
    raw = (int(text) & (1 << 64) - 1).to_bytes(8, "big")
    raw = raw if int(text) < 0 else bytes([raw[0] | 0x80]) + raw[1:]
    ((entry, _),) = read(pax(b"x", record(b"uid", text)) + patched(0, b"x")[:512])
    assert entry.uid == uid
    ((entry, _),) = read(patched(108, raw)[:512])
    assert entry.uid == uid


def test_a_file_of_old_tar_with_a_slash_is_a_directory() -> None:
    """Its name may also come of an extension; a type of today counts for more."""
    old = patched(0, b"name/", b"\0")
    assert read(old)[0][0].kind == tar_headers.DIRECTORY
    assert read(pax(b"x", record(b"path", b"p/")) + patched(0, b"x", b"\0"))[0][0].kind == b"5"
    assert read(patched(0, b"name/"))[0][0].kind == tar_headers.REGULAR


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_only_files_are_sparse(kind: bytes) -> None:
    one = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.map", b"0,4")
    data = pax(b"x", one) + patched(124, b"%011o" % 512, kind)[:512] + tar((info("after"), b"z"))
    assert [(e.name[:4], e.sparse) for e, _ in read(data)] == [(b"name", None), (b"afte", None)]


def test_a_header_number_may_be_padded_on_either_side() -> None:
    for text in (b"\0000644", b"  644\0\0", b"0644 \0 ", b"644\0rub"):
        assert number(text) == 0o644


def test_repeated_global_records_are_fine() -> None:
    one = pax(b"g", record(b"comment", b"v" * 500_000)) + patched(0, b"x")[:512]
    assert len(read(one * 20)) == 20


def test_an_archive_may_end_without_its_zero_blocks() -> None:
    assert [e.name for e, _ in read(tar((info("a"), b""))[:512])] == [b"a"]
    assert read(b"") == read(bytes(1024)) == []


@given(st.integers(-(1 << 62), (1 << 62) - 1))
def test_base_256_numbers(value: int) -> None:
    raw = bytearray(value.to_bytes(8, "big", signed=True))
    if value >= 0:
        raw[0] |= 0x80
    assert number(bytes(raw)) == value


@given(st.integers(0, 8**7 - 1), st.sampled_from([b"%07o\0", b"%06o \0", b"%7o\0", b"%o\0"]))
def test_octal_numbers(value: int, form: bytes) -> None:
    assert number((form % value)[:12] or b"0") == value


@given(st.binary(min_size=1, max_size=12))
def test_any_number_field(data: bytes) -> None:
    with contextlib.suppress(BadLayerError):
        number(data)


KEY = st.binary(min_size=1, max_size=20).filter(lambda k: b"=" not in k)


@given(st.dictionaries(KEY, st.binary(max_size=200)))
def test_pax_records_come_back(records: dict[bytes, bytes]) -> None:
    data = b"".join(record(key, value) for key, value in records.items())
    found = parse_pax(data)
    found.pop(b"GNU.sparse.map", None)
    assert found == {k: v for k, v in records.items() if k != b"GNU.sparse.map"}


@given(st.binary(max_size=200))
def test_any_pax_data(data: bytes) -> None:
    with contextlib.suppress(BadLayerError):
        parse_pax(data)


SAMPLE = tar(
    (info("n" * 150, uid=5, pax_headers={"SCHILY.xattr.user.a": "b", "mtime": "1.5"}), b"1234"),
    (info("dir/", tarfile.DIRTYPE), b""),
    (info("null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
)[:-8192]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 9), st.binary(min_size=1, max_size=8))),
    st.booleans(),
)
def test_mutated_archives_give_members_or_the_error(
    changes: list[tuple[int, bytes]], seal: bool
) -> None:
    data = bytearray(SAMPLE)
    for at, noise in changes:
        data[at : at + len(noise)] = noise
    if seal:  # otherwise hardly anything gets past the checksum
        for at in range(0, len(data), 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + 512] = sealed(data[at : at + 512])
    try:
        for entry, _ in read(bytes(data)):
            assert entry.size >= 0
            assert 0 <= entry.major < 1 << 12
            assert b"\0" not in entry.link
    except BadLayerError:
        pass


@given(st.binary(max_size=2000))
def test_any_bytes_give_members_or_the_error(data: bytes) -> None:
    with contextlib.suppress(BadLayerError):
        read(data)
