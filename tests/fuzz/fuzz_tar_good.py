# SPDX-License-Identifier: Apache-2.0
"""Well-formed archives, by GNU tar and by Python: the tree is the one that GNU tar makes of it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from random import Random

from criagent.image.tar.decompress import LayerStream
from criagent.image.tar.headers import DIRECTORY, entries
from criagent.image.unpack.extract import clean
from criagent.image.unpack.layer_tree import Below, parent_of
from tests.fuzz.layer_ground import extract, facts, fresh

NAMES = [
    "a", "bbb", "ü", "日本", "with space", "x" * 101, "y" * 240, "-dash", "new\nline",
    "back\\slash", "q\"'", "\x7f", "e\u0301", "deep/er/still", "long/" * 40 + "end",
]  # fmt: skip
FORMATS = [
    "v7", "oldgnu", "gnu", "ustar", "posix", "posix --sparse-version=0.0",
    "posix --sparse-version=0.1", "posix --sparse-version=1.0",
]  # fmt: skip


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return _of_gnu_tar(rnd) if rnd.random() < 0.3 else _of_python(rnd)


def check(data: bytes) -> None:
    ours, theirs = fresh("ours"), fresh("theirs")
    extract(data, ours, Below.NOTHING)
    words = ["tar", "-x", "-p", "-f", "-", "-C", theirs, "--numeric-owner", "--same-owner"]
    words += ["--xattrs", "--xattrs-include=*", "--delay-directory-restore"]
    done = subprocess.run(
        words,  # type: ignore[arg-type]
        input=data,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
        umask=0o022,
    )
    assert done.returncode == 0, done.stderr
    for path in _implied(data):  # neither has a time for them
        for top in (ours, theirs):
            os.utime(top / os.fsdecode(path), (0, 0))
    mine, other = facts(ours, directory_times=True), facts(theirs, directory_times=True)
    different = {k: (mine[0].get(k), other[0].get(k)) for k in {*mine[0], *other[0]}}
    different = {k: pair for k, pair in different.items() if pair[0] != pair[1] and k != "."}
    assert not different, different
    assert mine[1] == other[1]


def _implied(data: bytes) -> set[bytes]:
    """Directories that the archive has no entry for."""
    stream = LayerStream(io.BytesIO(data))
    try:
        found = {clean(entry.name): entry.kind == DIRECTORY for entry in entries(stream)}
    finally:
        stream.close()
    implied = set()
    for path in found:
        above = parent_of(path)
        while above and above not in implied:
            implied.add(above)
            above = parent_of(above)
    return implied - {path for path, is_directory in found.items() if is_directory}


def _of_gnu_tar(rnd: Random) -> bytes:
    """An archive of a real tree, sparse files among it."""
    top = fresh("packed")
    for number in range(rnd.randint(1, 6)):
        path = top / f"{rnd.choice(NAMES[:7])}{number}"
        if rnd.random() < 0.2:
            path.mkdir()
        elif rnd.random() < 0.3:
            path.symlink_to(rnd.choice(["x", "/y", "n" * 150]))
        else:
            _sparse(rnd, path)
    first = top / min(os.listdir(top))
    if first.is_file():
        os.link(first, top / "zz")
    form = rnd.choice(FORMATS)
    words = [
        "tar",
        "-c",
        "-f",
        "-",
        "-C",
        str(top),
        f"--format={form.split()[0]}",
        *form.split()[1:],
    ]
    if form.split()[0] not in {"v7", "ustar"}:
        words.append("-S")
    done = subprocess.run([*words, "."], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else _of_python(rnd)


def _sparse(rnd: Random, path: Path) -> None:
    with open(path, "wb") as file:
        for _ in range(rnd.choice([0, 1, 3, 30])):
            file.seek(rnd.choice([0, 1, 5000, 70_000]), os.SEEK_CUR)
            file.write(rnd.randbytes(rnd.choice([1, 512, 9000])))
        file.truncate(file.tell() + rnd.choice([0, 0, 100_000]))


def _of_python(rnd: Random) -> bytes:
    form = rnd.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        directories, files, used = [""], list[str](), set[str]()
        for number in range(rnd.randint(1, 30)):
            name = f"{rnd.choice(directories)}{rnd.choice(NAMES)}{number}"
            if name in used:
                continue
            entry, content = _entry(rnd, name, files, form)
            try:
                archive.addfile(entry, io.BytesIO(content))
            except ValueError:  # too long or too large for the format
                continue
            used.add(name)
            if entry.isdir():
                directories.append(name + "/")
            elif entry.isreg():
                files.append(name)
    return buffer.getvalue()


def _entry(rnd: Random, name: str, files: list[str], form: int) -> tuple[tarfile.TarInfo, bytes]:
    entry, content = tarfile.TarInfo(name), b""
    entry.mode = rnd.choice([0o644, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o7777, 0o600])
    entry.uid = rnd.choice([0, 1000, 65534, 2**21 - 1, 2**31, 2**32 - 2])
    entry.gid = rnd.choice([0, 5, 100_000])
    entry.mtime = rnd.choice([0, 1, 1_700_000_000, 2**31, 2**32 + 5])
    match rnd.randrange(9):
        case 0 | 1:
            entry.type = tarfile.DIRTYPE
        case 2:
            entry.type, entry.linkname = tarfile.SYMTYPE, rnd.choice(["a", "../x", "/e", "n" * 150])
        case 3 if files:
            entry.type, entry.linkname = tarfile.LNKTYPE, rnd.choice(files)
        case 4:
            entry.type = tarfile.FIFOTYPE
        case 5:
            entry.type = rnd.choice([tarfile.CHRTYPE, tarfile.BLKTYPE])
            entry.devmajor, entry.devminor = rnd.choice(
                [(1, 3), (8, 1), (259, 1000), (511, 70_000)]
            )
        case _:
            content = rnd.randbytes(rnd.choice([0, 1, 511, 512, 513, 4096, 100_000]))
            entry.size = len(content)
    if form == tarfile.PAX_FORMAT and (entry.isreg() or entry.isdir()):
        if rnd.random() < 0.3:
            value = rnd.choice(["v", "ü", "a=b\nc", ""])
            entry.pax_headers[f"SCHILY.xattr.user.k{rnd.randrange(3)}"] = value  # type: ignore[index]
        if rnd.random() < 0.3:
            entry.pax_headers["mtime"] = rnd.choice(  # type: ignore[index]
                ["1.5", "-1.5", "1700000000.123456789", "-0.25"]
            )
    return entry, content
