"""Layers that are odd, broken or hostile, through the real unpack worker."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import resource
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from criagent.errors import CorruptError, ExhaustedError
from criagent.image.unpack import LayerFile, NeedsLowers, Unpacked, UnpackWorkers

pytestmark = pytest.mark.root

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **facts: object
) -> tuple:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, len(content)
    for key, value in facts.items():
        setattr(entry, key, value)
    return entry, content


def tar(*members: tuple) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in members:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Place:
    """A directory to unpack into, with a file outside that nothing may touch."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.outside = top / "outside"
        self.outside.write_text("untouched")
        self.outside.chmod(0o600)
        self.count = 0

    async def unpack(
        self,
        plain: bytes,
        packed: bytes | None = None,
        lowers: list[Path] | None = None,
        **wrong: str,
    ) -> tuple[Path, Unpacked]:
        self.count += 1
        packed = gzip.compress(plain) if packed is None else packed
        blob = self.top / f"blob{self.count}"
        blob.write_bytes(packed)
        root = self.top / f"layer{self.count}" / "fs"
        root.mkdir(parents=True)
        layer = LayerFile(
            blob=blob,
            size=len(packed),
            digest=wrong.get("digest", "sha256:" + hashlib.sha256(packed).hexdigest()),
            diff_id=wrong.get("diff_id", "sha256:" + hashlib.sha256(plain).hexdigest()),
        )
        workers = UnpackWorkers(1)
        try:
            return root, await workers.extract(layer, root, lowers or [], lambda _: None)
        finally:
            await workers.close()

    def is_untouched(self) -> bool:
        mode = stat.S_IMODE(self.outside.stat().st_mode)
        return (self.outside.read_text(), mode) == ("untouched", 0o600)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    # /tmp of the node is a tmpfs, on which overlay can have its upperdir.
    return Place(tmp_path_factory.mktemp("unpack"))


SYMLINK, LINK, DIR, CHAR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside", b"x")],
        [member("a/../../outside", b"x")],
        [member("a/.wh...", b"")],
        [member(".wh..", b"")],
        [member("link", kind=LINK, linkname="../outside")],
        [member("x" * 300, b"long")],
        [member("f", b"x"), member("f/below", b"y"), member("g", kind=LINK, linkname="f/below/z")],
        [member("f", b"x", uid=2**32 - 1)],
        [member("f", kind=b"Z")],
        [member("d", kind=SYMLINK, linkname="")],
    ],
)
async def test_impossible_members_fail_the_layer(place: Place, members: Members) -> None:
    with pytest.raises((CorruptError, NeedsLowers)):
        await place.unpack(tar(*members))
    assert place.is_untouched()


@pytest.mark.parametrize(
    "members",
    [
        [member("/outside", b"x")],
        [member("link", kind=SYMLINK, linkname="../outside"), member("link", b"x")],
        [
            member("link", kind=SYMLINK, linkname="/outside", mode=0o777),
            member("link", b"", mode=0o777),
        ],
        [member("up", kind=SYMLINK, linkname=".."), member("up/outside", b"x")],
        [member("up", kind=SYMLINK, linkname="../../.."), member("up/outside", b"x")],
        [
            member("d", kind=DIR),
            member("d", kind=SYMLINK, linkname=".."),
            member("d/outside", b"x"),
        ],
        [member("proc", kind=SYMLINK, linkname="/proc/self/root"), member("proc", kind=DIR)],
    ],
)
async def test_links_never_lead_out_of_the_layer(place: Place, members: Members) -> None:
    with contextlib.suppress(CorruptError, NeedsLowers):
        await place.unpack(tar(*members))
    assert place.is_untouched()
    assert sorted(p.name for p in place.top.iterdir()) == ["blob1", "layer1", "outside"]


@pytest.mark.parametrize("depth", [39, 60])
async def test_long_chains_of_links_end(place: Place, depth: int) -> None:
    links = [member(f"l{n}", kind=SYMLINK, linkname=f"l{n + 1}") for n in range(depth)]
    with pytest.raises((CorruptError, NeedsLowers)):
        await place.unpack(tar(*links, member("l0/file", b"x")))


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
    assert result.implied == ("implied",)


async def test_attributes_that_steer_overlays_are_dropped(place: Place) -> None:
    entry, content = member("f", b"x")
    entry.pax_headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.kept": "v",
    }
    root, _ = await place.unpack(tar((entry, content)))
    assert os.listxattr(root / "f") == ["user.kept"]


async def test_a_link_into_a_lower_layer_is_done_through_it(place: Place) -> None:
    lower, _ = await place.unpack(
        tar(
            member("usr/bin/tool", b"tool", mode=0o755),
            member("bin", kind=SYMLINK, linkname="usr/bin"),
            member("data/old", b"old"),
            member("data/kept", b"kept"),
        )
    )
    plain = tar(
        member("again", kind=LINK, linkname="usr/bin/tool"),
        member("bin/other", b"other"),
        member("data/.wh.old"),
    )
    with pytest.raises(NeedsLowers):
        await place.unpack(plain)
    upper, _ = await place.unpack(plain, lowers=[lower])
    assert (upper / "again").read_bytes() == b"tool"
    assert (upper / "usr/bin/other").read_bytes() == b"other"
    assert not (upper / "bin").exists()
    assert stat.S_ISCHR((upper / "data/old").stat().st_mode)


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


@pytest.mark.parametrize("which", ["digest", "diff_id"])
async def test_both_digests_are_checked(place: Place, which: str) -> None:
    with pytest.raises(CorruptError, match="sha256:"):
        await place.unpack(tar(member("f", b"x")), **{which: "sha256:" + "0" * 64})


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


@pytest.mark.parametrize("bomb", [sparse_bomb, pax_bomb])
async def test_headers_have_limits(place: Place, bomb: Callable[[], bytes]) -> None:
    with pytest.raises(CorruptError):
        await place.unpack(bomb())


async def test_a_layer_larger_than_the_disk_is_refused_early(place: Place) -> None:
    """1 TB of zeros in a few hundred bytes of header: the size alone is enough."""
    entry = tarfile.TarInfo("bomb")
    entry.size = 1 << 40
    packed = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(ExhaustedError, match="grows beyond"):
        await place.unpack(b"", packed)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 100_000)


async def test_a_worker_dies_with_its_caller(place: Place) -> None:
    plain = tar(member("f", os.urandom(1 << 22)))
    task = asyncio.create_task(place.unpack(plain))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
