# SPDX-License-Identifier: Apache-2.0
"""The image of one layer: made of a tree by mkfs.erofs, and described by a file beside it.

`image` under its name is complete and durable, and so is `image.json`, which is written first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from criagent.base import faults
from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.base.os_errors import of_the_agent
from criagent.kernel import verity
from criagent.process.child import Ended, Options, run

IMAGE, PART, DESCRIPTION = "image", "image.part", "image.json"
PACKAGES = "install erofs-utils (Debian, Ubuntu, Fedora)"

_CHUNK = 1 << 20
_SPARE = 1 << 20  # bytes of the disk that no layer may take
_HOLE = 64 << 10  # bytes of a hole that is worth an index of chunks
_MOST_CHUNKS = 1 << 20  # of one file, 8 bytes each in memory
_SMALLEST_CHUNK = 4096
_OLDEST = (1, 6)  # of erofs-utils that leaves holes out of chunks
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)[0-9a-z.]*")
_FULL = ("No space left on device", "Disk quota exceeded")
_TOO_LARGE = -25  # SIGXFSZ


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an image was when it was made. `verity` is its fs-verity digest, "" = not enabled."""

    size: int
    sha256: str
    verity: str = ""


async def make(tree: Path, image: Path, layout: Sequence[str]) -> None:
    """Write the image of `tree` to the file `image`, over an existing one; `layout` is `layout`'s.

    A file system that is full, or would be, is ExhaustedError; without mkfs.erofs UnsupportedError.
    """
    image.unlink(missing_ok=True)
    free = os.statvfs(image.parent)
    limit = max(_CHUNK, free.f_bavail * free.f_frsize - _SPARE)
    argv: list[str | Path] = ["prlimit", f"--fsize={limit}", "--", "mkfs.erofs", "--quiet"]
    ended = await _run([*argv, *layout, image, tree], image.parent)
    errors = ended.errors.strip()
    if ended.status == _TOO_LARGE or any(reason in errors for reason in _FULL):
        image.unlink(missing_ok=True)
        raise ExhaustedError(
            f"no space left below {image.parent.parent} for the image of a layer; remove images "
            "or enlarge the disk"
        )
    if ended.status:
        image.unlink(missing_ok=True)
        raise AgentError(f"mkfs.erofs of {tree}: {errors[-300:] or f'status {ended.status}'}")


def finish(image: Path, *, with_verity: bool) -> Description:
    """Make what `make` wrote durable, and tell what it is; synchronous. Raises OSError."""
    with open(image, "rb") as file:
        os.fsync(file.fileno())
        faults.reach("erofs:image-synced")
        if with_verity:
            verity.enable(file.fileno())
            faults.reach("erofs:verity-enabled")
        return Description(
            size=os.fstat(file.fileno()).st_size,
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            verity=verity.measure(file.fileno()) if with_verity else "",
        )


def describe(directory: Path, description: Description) -> None:
    """Write the description of the image in `directory`, durably."""
    part = directory / f"{DESCRIPTION}.part"
    with open(part, "w") as file:
        json.dump(dataclasses.asdict(description), file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(directory / DESCRIPTION)


def described(directory: Path) -> Description:
    """The description of the image in `directory`. Raises OSError, ValueError."""
    document = json.loads((directory / DESCRIPTION).read_bytes())
    try:
        return Description(**document)
    except TypeError as exc:
        raise ValueError(str(exc)) from None


def problem(directory: Path, *, with_verity: bool) -> str:
    """How the image in `directory` differs from its description; "" = not. Reads all of it."""
    try:
        expected = described(directory)
        with open(directory / IMAGE, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                return f"the layer's image has {size} bytes instead of {expected.size}"
            if found := verity_problem(file.fileno(), expected, with_verity=with_verity):
                return found
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as exc:
        return f"the layer's {Path(exc.filename).name} is missing"
    except ValueError:
        return f"the layer's {DESCRIPTION} is damaged"
    except OSError as exc:
        if of_the_agent(exc):
            raise
        return f"the layer's image cannot be read: {exc.strerror}"
    if digest != expected.sha256:
        return f"the layer's image has the digest {digest} instead of {expected.sha256}"
    return ""


def verity_problem(fd: int, expected: Description, *, with_verity: bool) -> str:
    """Why the open image `fd` must not be mounted where fs-verity is asked for; "" = it may."""
    if not with_verity:
        return ""
    if not expected.verity:
        return "the layer was unpacked without fs-verity"
    if (found := verity.measure(fd)) != expected.verity:
        return f"the layer's image has the fs-verity digest {found or '-'} instead of " + (
            expected.verity
        )
    return ""


async def version() -> str:
    """That of mkfs.erofs. Raises UnsupportedError when there is none, or one that is too old."""
    ended = await _run(["mkfs.erofs", "-V"], Path("/"))
    found = _VERSION.search(ended.output + ended.errors)
    if found is None:
        raise UnsupportedError(f"mkfs.erofs -V says no version: {ended.output[:80]!r}; {PACKAGES}")
    if (int(found[1]), int(found[2])) < _OLDEST:
        raise UnsupportedError(
            f"mkfs.erofs {found[0]} would store the holes of files; the storage driver erofs needs "
            f"erofs-utils {_OLDEST[0]}.{_OLDEST[1]} or newer"
        )
    return found[0]


def layout(tree: Path, compression: str) -> list[str]:
    """Options of mkfs.erofs for the data of `tree`; synchronous.

    Holes need chunks, since it would store or compress each of their zeros. A file of a layer may
    be hollow beyond all disks, so chunks grow with it.
    """
    hollow = _largest_hollow(tree)
    if hollow:
        chunk = _SMALLEST_CHUNK
        while hollow // chunk > _MOST_CHUNKS:
            chunk *= 2
        return [f"--chunksize={chunk}"]
    return [f"-z{compression}"] if compression else []


def _largest_hollow(tree: Path) -> int:
    """Bytes of the largest file with holes in it; 0 = there is none."""
    largest = 0
    for _, _, files, fd in os.fwalk(tree, follow_symlinks=False):
        for name in files:
            facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode) and facts.st_size - facts.st_blocks * 512 >= _HOLE:
                largest = max(largest, facts.st_size)
    return largest


async def _run(argv: list[str | Path], scratch: Path) -> Ended:
    """Without a limit in time, since the size of the data decides; temporary files in `scratch`."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": str(scratch)}
    with contextlib.suppress(FileNotFoundError):
        ended = await run(argv, limit_s=None, keep=16384, options=Options(env=env))
        if ended.status != 127:  # of prlimit: it did not find the program
            return ended
    raise UnsupportedError(f"the storage driver erofs needs mkfs.erofs; {PACKAGES}")
