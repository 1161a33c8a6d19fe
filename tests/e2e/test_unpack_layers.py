# SPDX-License-Identifier: Apache-2.0
"""Layers over layers: what a container sees, alone or written through the lower ones."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.unpack_place import (
    BLOCK,
    CHAR,
    FIFO,
    Member,
    Place,
    directory,
    hard,
    link,
    listed,
    member,
    tar,
)

pytestmark = pytest.mark.root


@pytest.fixture
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    made = Place(tmp_path_factory.mktemp("unpack"))
    yield made
    await made.workers.close()


LOWER = tar(
    directory("d", mode=0o750, uid=5, mtime=1000),
    member("d/old", b"old"),
    member("d/sub/x", b"x"),
    member("d/sub/y", b"y"),
    directory("usr/lib"),
    member("usr/lib/low", b"low"),
    link("lib", "usr/lib"),
    link("abs", "/usr/lib"),
    link("dangling", "no/where"),
    link("up", "../../usr/lib"),
    member("file", b"file"),
)
SEEN = {
    "d": "/", "d/old": "old", "d/sub": "/", "d/sub/x": "x", "d/sub/y": "y", "usr": "/",
    "usr/lib": "/", "usr/lib/low": "low", "lib": "-> usr/lib", "abs": "-> /usr/lib",
    "dangling": "-> no/where", "up": "-> ../../usr/lib", "file": "file",
}  # fmt: skip
D = ["d/old", "d/sub", "d/sub/x", "d/sub/y"]
OPAQUE = member("d/.wh..wh..opq")


def seen(*gone: str, **more: str) -> dict[str, str]:
    """What the lower layer shows, without `gone` and with `more` ("__" for a slash)."""
    kept = {name: text for name, text in SEEN.items() if name not in gone}
    return kept | {name.replace("__", "/"): text for name, text in more.items()}


CASES: dict[str, tuple[list[Member], dict[str, str]]] = {
    # Links as parents.
    "through a link": ([member("lib/n", b"n")], seen(usr__lib__n="n")),
    "through an absolute link": ([member("abs/n", b"n")], seen(usr__lib__n="n")),
    "through a link upwards": ([member("up/n", b"n")], seen(usr__lib__n="n")),
    "through a dangling link": (
        [member("dangling/n", b"n")],
        seen(no="/", no__where="/", no__where__n="n"),
    ),
    "through an own dangling link": (
        [link("q", "qq"), member("q/x", b"x")],
        seen(q="-> qq", qq="/", qq__x="x"),
    ),
    "through an own dangling link upwards": (
        [link("q", "../../a/b"), member("q/x", b"x")],
        seen(q="-> ../../a/b", a="/", a__b="/", a__b__x="x"),
    ),
    "through an own link into a lower layer": (
        [link("q", "usr/lib"), member("q/n", b"n")],
        seen(q="-> usr/lib", usr__lib__n="n"),
    ),
    "through an own link to a link": (
        [link("q", "lib"), member("q/n", b"n")],
        seen(q="-> lib", usr__lib__n="n"),
    ),
    "through an own link to a file": (
        [link("q", "file"), member("q/n", b"n")],
        seen(q="-> file", file="/", file__n="n"),
    ),
    "through a file": ([member("file/a/b", b"n")], seen(file="/", file__a="/", file__a__b="n")),
    "through an own file": (
        [member("d", b"f"), member("d/a/b", b"n")],
        seen(*D, d__a="/", d__a__b="n"),
    ),
    "directory over a link": (
        [directory("lib"), member("lib/n", b"n")],
        seen(lib="/", lib__n="n"),
    ),
    "link over a directory": ([link("d", "usr")], seen(*D, d="-> usr")),
    "file over a link": ([member("lib", b"f")], seen(lib="f")),
    "hard link to a lower file": ([hard("h", "usr/lib/low")], seen(h="low")),
    "hard link through a link": ([hard("h", "lib/low")], seen(h="low")),
    "hard link through links upwards": ([hard("h", "../up/../lib/low")], seen(h="low")),
    "hard link over its lower file": ([hard("file", "usr/lib/low")], seen(file="low")),
    "hard link to a link": ([hard("h", "dangling")], seen(h="-> no/where")),
    "hard link to itself": ([hard("file", "./file")], seen()),
    "hard link in an implied directory": ([hard("n/h", "file")], seen(n="/", n__h="file")),
    # Whiteouts.
    "whiteout": ([member("d/.wh.old")], seen("d/old")),
    "whiteout through a link": ([member("lib/.wh.low")], seen("usr/lib/low")),
    "whiteout of a link": ([member(".wh.lib")], seen("lib")),
    "whiteout of a directory": ([member(".wh.d")], seen("d", *D)),
    "whiteout of what is not there": ([member(".wh.none"), member("d/.wh.none")], seen()),
    "whiteout where no directory is": ([member("n/a/.wh.none")], seen()),
    "whiteout below a file": ([member("file/.wh.none")], seen()),
    "whiteout below an own file": ([member("d", b"f"), member("d/.wh.old")], seen(*D, d="f")),
    "whiteout below a dangling link": ([member("dangling/.wh.none")], seen()),
    "whiteout of a directory, then of its child": (
        [member(".wh.d"), member("d/.wh.old")],
        seen("d", *D),
    ),
    "whiteout of a child, then of the directory": (
        [member("d/.wh.old"), member("d/sub/.wh.x"), member(".wh.d")],
        seen("d", *D),
    ),
    "whiteout of a directory, then a file in it": (
        [member(".wh.d"), member("d/n", b"n")],
        seen(*D, d__n="n"),
    ),
    "a file, then whiteout of its directory": (
        [member("d/n", b"n"), member(".wh.d")],
        seen(*D, d__n="n"),
    ),
    "whiteout, then the same": ([member("d/.wh.old"), member("d/old", b"n")], seen(d__old="n")),
    "the same, then whiteout": ([member("d/old", b"n"), member("d/.wh.old")], seen(d__old="n")),
    "whiteout, then a directory": (
        [member(".wh.d"), directory("d"), member("d/sub/n", b"n")],
        seen(*D, d__sub="/", d__sub__n="n"),
    ),
    "a directory, then whiteout": ([directory("d"), member(".wh.d")], seen(*D)),
    "whiteout, then a file, then a directory": (
        [member(".wh.d"), member("d", b"f"), directory("d")],
        seen(*D),
    ),
    "a file, then a directory": ([member("d", b"f"), directory("d")], seen(*D)),
    "opaque": ([OPAQUE], seen(*D)),
    "opaque, then files": (
        [OPAQUE, member("d/sub/n", b"n")],
        seen(*D, d__sub="/", d__sub__n="n"),
    ),
    "files, then opaque": (
        [member("d/sub/n", b"n"), member("d/n", b"n"), OPAQUE],
        seen(*D, d__sub="/", d__sub__n="n", d__n="n"),
    ),
    "opaque twice with a file between": (
        [OPAQUE, member("d/n", b"n"), OPAQUE],
        seen(*D, d__n="n"),
    ),
    "opaque inside, then outside": (
        [member("d/sub/.wh..wh..opq"), member("d/sub/n", b"n"), OPAQUE],
        seen(*D, d__sub="/", d__sub__n="n"),
    ),
    "opaque with whiteouts in it": (
        [directory("d"), OPAQUE, member("d/.wh.old"), member("d/n", b"n")],
        seen(*D, d__n="n"),
    ),
    "opaque and gone": ([OPAQUE, member(".wh.d")], seen("d", *D)),
    "opaque where no directory is": ([member("n/a/.wh..wh..opq")], seen()),
    "opaque through a link": ([member("lib/.wh..wh..opq")], seen("usr/lib/low")),
    "opaque root": ([member(".wh..wh..opq"), member("n", b"n")], {"n": "n"}),
    "files, then opaque root": (
        [member("d/n", b"n"), member(".wh..wh..opq")],
        {"d": "/", "d/n": "n"},
    ),
    "bookkeeping of aufs": ([member(".wh..wh.aufs"), member(".wh..wh.orph/x", b"x")],
                            seen(**{".wh..wh.orph": "/", ".wh..wh.orph__x": "x"})),
    "links of aufs": (
        [member(".wh..wh.plnk/1.2", b"n"), hard("n", ".wh..wh.plnk/1.2")],
        seen(**{".wh..wh.plnk": "/", ".wh..wh.plnk__1.2": "n"}, n="n"),
    ),
    "device 0:0": ([member("d/old", kind=CHAR), member("new", kind=CHAR)], seen("d/old")),
    "hard link to device 0:0": ([member("file", kind=CHAR), hard("file", "usr/lib/low")],
                                seen(file="low")),
    # Names.
    "names with dots": (
        [member("./d/./n", b"n"), member("d//m", b"m"), member("a/b/../c", b"c")],
        seen(d__n="n", d__m="m", a="/", a__c="c"),
    ),
    "names upwards": ([member("../../n", b"n"), member("d/../../m", b"m")], seen(n="n", m="m")),
    "names of the root": (
        [member(""), member("."), member(".."), member("/", b"x"), directory("./")],
        seen(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_what_a_container_sees(place: Place, name: str) -> None:
    members, expected = CASES[name]
    for merged in (False, True):
        for lowers in ([LOWER], [tar(directory("d")), LOWER, tar(member("file", b"file"))]):
            trees = await place.image(*lowers, tar(*members), merged=merged)
            with place.view(trees) as view:
                assert listed(view) == expected, "merged" if merged else "alone"
    assert place.is_untouched()


KINDS = {
    "file": member("x", b"n"),
    "directory": directory("x"),
    "link": link("x", "d"),
    "hard link": hard("x", "file"),
    "device": member("x", kind=CHAR, devmajor=1, devminor=3),
    "disk": member("x", kind=BLOCK, devmajor=7, devminor=0),
    "pipe": member("x", kind=FIFO),
}
LAST = {
    "file": "n", "directory": "/", "link": "-> d", "hard link": "file", "device": "c",
    "disk": "b", "pipe": "p",
}  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
async def test_the_last_entry_of_a_name_counts(place: Place, merged: bool) -> None:
    for first, second in itertools.product(KINDS, KINDS):
        lower = tar(KINDS[first], *([member("x/in", b"in")] if first == "directory" else []))
        if first == "hard link":
            lower = tar(member("file", b"file"), KINDS[first])
        plain = tar(member("file", b"file"), KINDS[first], KINDS[second])
        trees = await place.image(lower, plain, merged=merged)
        with place.view(trees) as view:
            shown = listed(view)
        kept = first == second == "directory"
        assert shown.pop("x") == LAST[second], (first, second)
        assert shown == {"file": "file", **({"x/in": "in"} if kept else {})}, (first, second)


@pytest.mark.parametrize("merged", [False, True])
async def test_implied_directories_are_those_below(place: Place, merged: bool) -> None:
    trees = await place.image(LOWER, tar(member("d/n"), member("d/.wh.old")), merged=merged)
    with place.view(trees) as view:
        facts = (view / "d").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_mtime) == (0o750, 5, 1000)


async def test_removed_lower_directories_lend_nothing(place: Place) -> None:
    """Where the layer removed a directory, one of that name is a new one."""
    upper = tar(directory("e"), member("e/.wh..wh..opq"), member("e/sub/n", b"n"))
    trees = await place.image(tar(directory("e/sub", mode=0o700, uid=9)), upper)
    with place.view(trees) as view:
        facts = (view / "e/sub").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o755, 0)


async def test_whiteouts_that_hide_nothing_are_not_kept(place: Place) -> None:
    """`ls` would show them in a directory of one layer alone, and times stay as they are."""
    upper = tar(
        directory("n", mtime=1000),
        member("n/.wh.ghost"),
        member("n/real", b"r"),
        member(".wh.none"),
        directory("d", mtime=2000),
        member("d/.wh.none"),
        member("d/.wh.old"),
    )
    trees = await place.image(LOWER, upper)
    with place.view(trees) as view:
        assert os.listdir(view / "n") == ["real"]
        assert [(view / name).stat().st_mtime for name in "nd"] == [1000, 2000]
    assert sorted(os.listdir(trees[0])) == ["d", "n"]
    assert os.listdir(trees[0] / "d") == ["old"]


async def test_whiteouts_of_the_lowest_layer_hide_nothing(place: Place) -> None:
    lowest = tar(directory("z"), member("z/.wh.ghost"), member("z/.wh..wh..opq"), member("n/.wh.x"))
    (tree,) = await place.image(lowest)
    assert listed(tree) == {"z": "/"}


async def test_deep_lower_directories_are_removed(place: Place) -> None:
    deep = "/".join(["d"] * 700)
    lower = tar(member(f"top/{deep}/f", b"x"), member("top/file", b"x"))
    trees = await place.image(lower, tar(hard("h", "top/file"), member(".wh.top")))
    with place.view(trees) as view:
        assert listed(view) == {"h": "x"}


async def test_opaque_marks_without_end_are_quick(place: Place) -> None:
    """Each looked at each path before: 20,000 by 1,000 took hours of a worker's time."""
    children = [member(f"base/c{n}/f") for n in range(5000)]
    marks = [member("base/.wh..wh..opq"), member("base/c0/.wh..wh..opq")] * 1000
    lower = tar(*(member(f"base/low{n}") for n in range(10)), member("file"))
    trees = await place.image(lower, tar(hard("h", "file"), *children, *marks))
    with place.view(trees) as view:
        assert len(os.listdir(view / "base")) == 5000


async def test_a_long_list_of_implied_directories_stays_in_the_worker(place: Place) -> None:
    """Of 5,000 directories, the daemon hears of none."""
    prefix = "p" * 90
    upper = tar(*(member(f"{prefix}/{prefix}{n}/f") for n in range(5000)))
    trees = await place.image(tar(directory(prefix, mode=0o700)), upper)
    assert len(os.listdir(trees[0] / prefix)) == 5000
    assert stat.S_IMODE((trees[0] / prefix).stat().st_mode) == 0o700
    assert [p.name for p in trees[0].parent.iterdir()] == ["fs"]


async def test_a_directory_replaced_while_open_is_not_written_to(place: Place) -> None:
    """Descriptors of directories are kept; a replaced one must not be taken for the new one."""
    plain = tar(
        member("a/b/f", b"1"),
        link("a", "c"),
        member("a/b/f", b"2"),
        member("a", b"file"),
        directory("a"),
        member("a/b/f", b"3"),
    )
    for layers in ([plain], [LOWER, plain]):
        trees = await place.image(*layers)
        root: Path = trees[0]
        assert (root / "c/b/f").read_text() == "2"
        assert (root / "a/b/f").read_text() == "3"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ["d", "./"])
async def test_an_entry_replaces_the_attributes_of_a_directory(
    place: Place, name: str, *, merged: bool
) -> None:
    """OCI layer.md, "Changeset over existing files": of a lower layer or of its own."""
    old = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.b": "1"}
    lower = tar(directory(name, pax_headers=old))
    upper = tar(
        directory(name, pax_headers={"SCHILY.xattr.user.c": "2"}),
        directory(name, pax_headers={"SCHILY.xattr.user.b": "2"}),
    )
    with place.view(await place.image(lower, upper, merged=merged)) as view:
        found = view / name
        assert {key: os.getxattr(found, key) for key in os.listxattr(found)} == {"user.b": b"2"}
