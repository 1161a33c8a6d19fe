# SPDX-License-Identifier: Apache-2.0
"""Layers that are odd, broken or hostile, through the real unpack worker."""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import stat
import struct
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from backports import zstd

from criagent.base.errors import AgentError, CorruptError, ExhaustedError
from criagent.image.snapshots.content_count import content_count
from criagent.image.unpack.workers import NeedsLowerLayers
from tests.support.unpack_place import (
    BLOCK,
    CHAR,
    DIR,
    FIFO,
    LINK,
    SYMLINK,
    Member,
    Place,
    directory,
    hard,
    link,
    member,
    tar,
)

pytestmark = pytest.mark.root

Members = list[Member]


@pytest.fixture
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    # /tmp of the node is a tmpfs, on which overlay can have its upperdir.
    made = Place(tmp_path_factory.mktemp("unpack"))
    yield made
    await made.workers.close()


HUNDRED = [link(f"l{n}", f"l{n + 1}") for n in range(100)]
IMPOSSIBLE: dict[str, tuple[Members, str]] = {
    "whiteout of the parent": ([member("a/.wh...")], "a whiteout without a file name"),
    "whiteout of itself": ([member(".wh..")], "a whiteout without a file name"),
    "whiteout of nothing": ([member("a/.wh.")], "a whiteout without a file name"),
    "name too long": ([member("x" * 300, b"long")], "too long"),
    "directory name too long": ([directory("x" * 300)], "too long"),
    "implied name too long": ([member("x" * 300 + "/y")], "too long"),
    "link name too long": ([link("x" * 300, "y")], "too long"),
    "node name too long": ([member("x" * 300, kind=FIFO)], "too long"),
    "whiteout name too long": ([member(".wh." + "x" * 300)], "too long"),
    "whiteout below a long name": ([member("x" * 300 + "/.wh.x")], "too long"),
    "path too long": ([member("x/" * 3000 + "y")], "too long"),
    "link target too long": ([link("l", "x" * 5000)], "too long"),
    "hard link target too long": ([hard("l", "x" * 300)], "too long"),
    "hard link to a directory": ([directory("d"), hard("l", "d")], "to the directory"),
    "hard link to the root": ([hard("l", "/")], "not a file"),
    "hard link to nothing": ([hard("l", "")], "not a file"),
    "hard link upwards": ([hard("l", "../outside")], "does not exist"),
    "hard link to a later file": ([hard("l", "f"), member("f")], "does not exist"),
    "hard link to a missing file": ([hard("l", "f")], "does not exist"),
    "hard link to itself": ([hard("l", "l")], "does not exist"),
    "hard link below a file": ([member("f"), hard("l", "f/below")], "does not exist"),
    "hard link to what it replaces": ([member("d/f"), hard("d", "d/f")], "does not exist"),
    "owner beyond 32 bits": ([member("f", uid=1 << 32)], "invalid uid"),
    "owner of the root": ([directory("./", uid=1 << 40)], "invalid uid"),
    "group far below zero": ([directory("./", gid=-(1 << 40))], "invalid gid"),
    "unknown type": ([member("f", kind=b"Z")], "unknown"),
    "empty link": ([link("d", "")], "without a target"),
    "loop of links": ([link("a", "b"), link("b", "a"), member("a/f")], "255 links"),
    "link to itself": ([link("a", "a"), member("a/f")], "255 links"),
    "many links": ([*HUNDRED, link("l100", "l0/l0/l0"), member("l100/f")], "255 links"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
async def test_impossible_members_fail_the_layer(place: Place, name: str) -> None:
    members, text = IMPOSSIBLE[name]
    plain = tar(*members)
    with pytest.raises(CorruptError, match=text) as caught:
        await place.unpack(plain, lowers=[])
    assert str(caught.value).startswith("layer sha256:")
    assert len(str(caught.value)) < 600
    lower, _ = await place.unpack(tar(directory("lower")), lowers=[])
    with pytest.raises(CorruptError, match=text):
        await place.unpack(plain, lowers=[lower])
    assert place.is_untouched()


async def test_an_error_names_the_entry(place: Place) -> None:
    with pytest.raises(CorruptError, match=r"layer sha256:[0-9a-f]{64}: entry 'some/where': "):
        await place.unpack(tar(member("some/where", kind=b"Z")), lowers=[])


CONTAINED: dict[str, Members] = {
    "absolute name": [member("/outside", b"x")],
    "name upwards": [member("../outside", b"x"), member("a/../../outside", b"x")],
    "link in place": [link("l", "../outside"), member("l", b"x")],
    "absolute link in place": [link("l", "/outside"), member("l", b"", mode=0o777)],
    "through a link upwards": [link("up", ".."), member("up/outside", b"x")],
    "through a link far up": [link("up", "../../.."), member("up/outside", b"x")],
    "through a link after a directory": [
        directory("d"),
        link("d", ".."),
        member("d/outside", b"x"),
    ],
    "through links of links": [link("a", ".."), link("b", "a/.."), member("b/a/outside", b"x")],
    "directory over a link": [link("proc", "/proc/self/root"), directory("proc", mode=0o777)],
    "through proc": [link("p", "/proc/self/root"), member("p/outside", b"x")],
    "hard link through a link": [link("up", "../.."), hard("l", "up/outside"), member("l", b"x")],
    "whiteout through a link": [link("up", "../.."), member("up/.wh.outside")],
    "opaque through a link": [link("up", "../.."), member("up/.wh..wh..opq")],
    "whiteout upwards": [member("../.wh.outside"), member("a/../../.wh.outside")],
    "nodes through a link": [link("up", ".."), member("up/outside", kind=CHAR, devmajor=1)],
}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", CONTAINED)
async def test_links_never_lead_out_of_the_layer(place: Place, name: str, merged: bool) -> None:
    lower, _ = await place.unpack(tar(directory("lower")), lowers=[])
    try:
        await place.unpack(tar(*CONTAINED[name]), lowers=[lower] if merged else None)
    except (CorruptError, NeedsLowerLayers):
        assert name.startswith(("hard", "opaque"))
    assert place.is_untouched()
    made = ["blob1", "blob2", "layer1", "layer2", "outside"]
    assert sorted(p.name for p in place.top.iterdir()) == made
    inside = {p.name for p in (place.top / "layer2").iterdir()}
    assert inside <= {"fs", "unsettled", "redo-work"}


@pytest.mark.parametrize("depth", [39, 60, 250])
async def test_chains_of_links_are_followed(place: Place, depth: int) -> None:
    links = [link(f"l{n}", f"l{n + 1}") for n in range(depth)]
    root, _ = await place.unpack(tar(*links, member("l0/file", b"x")), lowers=[])
    assert (root / f"l{depth}/file").read_text() == "x"


async def test_everything_a_layer_can_hold_arrives(place: Place) -> None:
    plain = tar(
        member("d", kind=DIR, mode=0o1777, uid=5, gid=6, mtime=1000),
        member("d/setuid", b"s", mode=0o4755),
        member("d/hard", kind=LINK, linkname="d/setuid"),
        member("d/link", kind=SYMLINK, linkname="/no/where"),
        member("d/fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        member("d/null", kind=CHAR, devmajor=1, devminor=3, mode=0o666),
        member("d/empty"),
        member("n" * 200, b"long"),
        member("d/" + os.fsdecode(b"\xff"), b"raw"),
        member("implied/here", b"x"),
        member("d/.wh.gone"),
        member("o", kind=DIR),
        member("o/.wh..wh..opq"),
    )
    root, result = await place.unpack(plain)
    d = root / "d"
    facts = d.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o1777, 5, 6)
    assert facts.st_mtime == 1000
    assert stat.S_IMODE((d / "setuid").stat().st_mode) == 0o4755
    assert (d / "hard").stat().st_ino == (d / "setuid").stat().st_ino
    assert os.readlink(d / "link") == "/no/where"
    assert stat.S_ISFIFO((d / "fifo").stat().st_mode)
    assert (d / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / ("n" * 200)).read_bytes() == b"long"
    assert (d / os.fsdecode(b"\xff")).read_bytes() == b"raw"
    gone = (d / "gone").stat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(root / "o", "trusted.overlay.opaque") == b"y"
    assert result.unsettled
    assert (root.parent / "unsettled").read_bytes() == b"dimplied\0xd/gone\0"


async def test_attributes_that_steer_overlays_are_dropped(place: Place) -> None:
    entry, content = member("f", b"x")
    entry.pax_headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.trusted.criagent": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.kept": "v",
    }
    root, _ = await place.unpack(tar((entry, content)))
    assert os.listxattr(root / "f") == ["user.kept"]


@pytest.mark.parametrize("kind", [CHAR, BLOCK, FIFO, SYMLINK, DIR])
async def test_what_is_not_a_file_has_its_facts_too(place: Place, kind: bytes) -> None:
    entry, _ = member("n", kind=kind, uid=7, gid=8, mtime=1234, mode=0o2640, linkname="x")
    entry.devmajor, entry.devminor = 1, 3
    if kind in {SYMLINK, FIFO}:
        entry.pax_headers = {"SCHILY.xattr.user.not-here": "v"}
    entry.pax_headers["SCHILY.xattr.security.test"] = "value"  # type: ignore[index]
    root, _ = await place.unpack(tar((entry, b"")), lowers=[])
    facts = (root / "n").lstat()
    assert (facts.st_uid, facts.st_gid, facts.st_mtime) == (7, 8, 1234)
    assert kind == SYMLINK or stat.S_IMODE(facts.st_mode) == 0o2640
    assert os.listxattr(root / "n", follow_symlinks=False) == ["security.test"]


TIMES = [("-1.5", -1_500_000_000), ("-0.25", -250_000_000), ("1700000000.123456789123", None)]


@pytest.mark.parametrize(("text", "expected"), [*TIMES, ("9" * 18, None), ("1" + "0" * 18, None)])
async def test_times_of_any_age(place: Place, text: str, expected: int | None) -> None:
    entry, _ = member("f", b"x")
    entry.pax_headers = {"mtime": text}
    root, _ = await place.unpack(tar((entry, b"x")), lowers=[])
    found = (root / "f").stat().st_mtime_ns
    if expected is not None:
        assert found == expected
    elif "." in text:
        assert found == 1_700_000_000_123_456_789
    else:
        assert found >= (1 << 32) * 10**9  # as far as the file system goes


async def test_setuid_bits_and_capabilities_survive_the_owner(place: Place) -> None:
    capability = b"\1\0\0\2\0\4\0\0" + bytes(12)  # v2, CAP_NET_BIND_SERVICE
    entry, _ = member("f", b"x", mode=0o6755, uid=1000, gid=1000)
    entry.pax_headers = {"SCHILY.xattr.security.capability": capability.decode()}
    root, _ = await place.unpack(tar((entry, b"x")), lowers=[])
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o6755
    assert os.getxattr(root / "f", "security.capability") == capability


@pytest.mark.parametrize(("uid", "found"), [(-1, 0), (2**32 - 1, 0), (-2, 2**32 - 2)])
async def test_owners_that_chown_does_not_know(place: Place, uid: int, found: int) -> None:
    """As Go's chown takes them: the low 32 bits, of which -1 changes nothing."""
    root, _ = await place.unpack(tar(member("f", uid=uid), directory("./", gid=uid)), lowers=[])
    assert ((root / "f").stat().st_uid, root.stat().st_gid) == (found, found)


def corruptions(plain: bytes) -> list[tuple[str, bytes]]:
    packed = gzip.compress(plain)
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0xFF
    return [
        ("truncated gzip", packed[:-20]),
        ("damaged gzip", bytes(damaged)),
        ("truncated zstd", zstd.compress(plain)[:-10]),
        ("truncated tar", gzip.compress(plain[:700])),
        ("damaged header", gzip.compress(plain[:100] + b"garbage" + plain[107:])),
        ("empty", b""),
        ("not a tar", gzip.compress(b"x" * 2000)),
    ]


@pytest.mark.parametrize("number", range(7))
async def test_damaged_layers_fail_and_the_next_one_works(place: Place, number: int) -> None:
    plain = tar(member("f", os.urandom(4000)))
    name, packed = corruptions(plain)[number]
    with pytest.raises(CorruptError):
        await place.unpack(plain, packed)
    root, _ = await place.unpack(plain)
    assert (root / "f").stat().st_size == 4000, name


async def test_an_archive_that_is_not_what_its_diff_id_says_fails(place: Place) -> None:
    with pytest.raises(CorruptError, match="diff ID sha256:"):
        await place.unpack(tar(member("f", b"x")), diff_id="sha256:" + "0" * 64)


async def test_a_file_that_is_not_what_its_digest_says_fails(place: Place) -> None:
    await place.unpack(b"", b"the blob", path="model")
    with pytest.raises(CorruptError, match="has the digest sha256:"):
        await place.unpack(b"", b"the blob", path="model", digest="sha256:" + "0" * 64)


PLAIN: dict[str, Members] = {
    "nothing": [],
    "files and directories": [
        directory("d/", mode=0o1777, uid=7, mtime=5),
        directory("d/e", mode=0o2755, gid=9),
        *[member(f"d/{n}", b"x" * n, uid=n, mode=0o4755, mtime=n) for n in range(40)],
        member("d/e/in setgid", b"y", mode=0o2640, uid=1),
    ],
    "the root's facts": [directory("./", mode=0o700, uid=4, gid=5), member("./f", b"x")],
    "links": [
        directory("d"),
        member("d/f", b"content", mode=0o600),
        hard("d/hard", "d/f"),
        link("l", "d"),
        link("dangling", "nowhere"),
        hard("hard", "l/f"),
        hard("of a link", "l"),
        member("l/through the link", b"x"),
    ],
    "order of names": [
        member(name, name.encode("utf-8", "surrogateescape"))
        for name in ("b", "a", "ä", "\U0001f980", "\uffee", "\udcff", "a b", "a0")
    ],
    "nested and named twice": [
        directory("a"),
        directory("a-b"),
        directory("a/b"),
        member("a/b/c", b"1"),
        directory("a", mode=0o711),
        member("a.b", b"2"),
    ],
    "nodes": [member("pipe", kind=FIFO, mode=0o640), member("null", kind=CHAR, devmajor=1)],
    "attributes": [
        member("f", b"x", pax_headers={"SCHILY.xattr.user.a": "b"}),
        directory("d", pax_headers={"SCHILY.xattr.user.c": ""}),
        member("d/f", b"y"),
    ],
    "times of any age": [member("old", mtime=-3.5), member("new", mtime=2**33 + 0.999999999)],
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("lowers", [None, []])
async def test_the_content_of_a_plain_layer_is_known_without_a_second_look(
    place: Place, name: str, lowers: list[Path] | None
) -> None:
    root, done = await place.unpack(tar(*PLAIN[name]), lowers=lowers)
    assert done.content == content_count(root)


# Version 2; then the tag, the permissions and the id of owner, group and others.
ACL = struct.pack("<I" + 3 * "HHI", 2, 1, 7, 2**32 - 1, 4, 5, 2**32 - 1, 32, 5, 2**32 - 1)
INHERITED = {"SCHILY.xattr.system.posix_acl_default": ACL.decode("utf-8", "surrogateescape")}
COUNTED: dict[str, Members] = {
    "an ACL for what comes": [directory("d", pax_headers=INHERITED), member("d/f")],
    "a whiteout": [member("f"), member(".wh.g")],
    "a replaced file": [member("f", b"1"), member("f", b"22")],
    "an implied directory": [member("d/f", b"x")],
}


@pytest.mark.parametrize("name", COUNTED)
async def test_the_content_of_any_other_layer_is_counted(place: Place, name: str) -> None:
    _, done = await place.unpack(tar(*COUNTED[name]))
    assert done.content is None


async def test_members_of_gzip_and_frames_of_zstd_follow_one_another(place: Place) -> None:
    plain = tar(member("f", b"content" * 1000))
    for pack in (gzip.compress, zstd.compress):
        packed = b"".join(pack(plain[at : at + 700]) for at in range(0, len(plain), 700))
        root, _ = await place.unpack(plain, packed)
        assert (root / "f").read_bytes() == b"content" * 1000


def sparse_bomb() -> bytes:
    entry, content = member("s", b"")
    entry.pax_headers = {"GNU.sparse.map": ",".join(["0,0"] * 200_000), "GNU.sparse.size": "1"}
    return tar((entry, content))


def pax_bomb() -> bytes:
    entry, content = member("s", b"")
    entry.pax_headers = {"comment": "x" * (2 << 20)}
    return tar((entry, content))


def many_records() -> bytes:
    entry, content = member("s", b"")
    entry.pax_headers = {f"k{n}": "v" for n in range(20_000)}
    return tar((entry, content))


@pytest.mark.parametrize("bomb", [sparse_bomb, pax_bomb, many_records])
async def test_headers_have_limits(place: Place, bomb: Callable[[], bytes]) -> None:
    with pytest.raises(CorruptError):
        await place.unpack(bomb())


async def test_a_layer_larger_than_the_disk_is_refused_early(place: Place) -> None:
    """1 TB of zeros in a few hundred bytes of header: the size alone is enough."""
    entry = tarfile.TarInfo("bomb")
    entry.size = 1 << 40
    packed = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(ExhaustedError, match="larger than"):
        await place.unpack(b"", packed)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 100_000)


async def test_paths_fill_the_disk_and_not_the_memory(place: Place) -> None:
    """Directories that paths imply count, and so do whiteouts."""
    deep = "/".join(["d"] * 1500)
    members = [member(f"{n}/{deep}/f") for n in range(3)]
    _, done = await place.unpack(tar(*members), lowers=[])
    assert done.inodes == 3 * 1502
    assert done.used_bytes == done.inodes * 4096
    _, done = await place.unpack(tar(member(".wh.a"), member(".wh.b")))
    assert done.inodes == 2


async def test_a_worker_dies_with_its_caller(place: Place) -> None:
    plain = tar(member("f", os.urandom(1 << 22)))
    task = asyncio.create_task(place.unpack(plain))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_has_no_network_and_few_rights(place: Place) -> None:
    """C code reads hostile bytes in it."""
    await place.unpack(tar(member("f")), lowers=[])
    (worker,) = children()
    for name in ("net", "ipc", "mnt"):
        assert os.readlink(f"/proc/{worker}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    links = [line.split(":")[0].strip() for line in lines_of(worker, "net/dev")[2:]]
    assert links == ["lo"]
    status = dict(line.split(":\t", 1) for line in lines_of(worker, "status"))
    needed = sum(1 << number for number in (0, 1, 3, 4, 21, 27, 31))
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[name], 16) == needed
    assert status["NoNewPrivs"].strip() == "1"


async def test_a_request_larger_than_the_pipe_is_refused(place: Place) -> None:
    """The event loop must never wait in a write."""
    plain = tar(member("f", b"x"))
    with pytest.raises(AgentError, match="too large"):
        await place.unpack(plain, lowers=[Path("/" + "x" * 1000)] * 2000)
    root, _ = await place.unpack(plain, lowers=[])
    assert (root / "f").read_bytes() == b"x"


def lines_of(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().splitlines()


def children() -> list[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return [pid for pid, command in commands.items() if b"unpack.worker" in command]
