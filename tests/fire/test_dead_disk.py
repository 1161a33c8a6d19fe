# SPDX-License-Identifier: Apache-2.0
"""A disk that fails as a whole at every verb: see `dead_disk.py`. In the VM: dm-flakey."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fire.dead_disk import fails_and_comes_back
from tests.fire.verbs import VERBS
from tests.power.node import MKFS_EXT4, ROOT, recorded_disk, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("no_agent"),
]


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """The test looks at its own root directory."""


@dataclass(frozen=True)
class FuseDisk:
    """The disk of `tests/power/disk.py`; `what` is its fault."""

    path: Path
    what: str

    def fail(self) -> None:
        self.path.with_name("fault").write_text(self.what)
        if self.what == "read":
            _forget(ROOT)

    def heal(self) -> None:
        self.path.with_name("fault").write_text("none")


def _forget(top: Path) -> None:
    """Take the files below from memory, so that they are read again."""
    for path in top.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


# What has to read from the disk. The others read only what is in memory, but for containers.
_READING = ("CreateContainer", "StartContainer", "CheckpointContainer", "PullImage", "RemoveImage")


@pytest.fixture
def backing(tmp_path: Path) -> Iterator[Path]:
    with recorded_disk(tmp_path / "fuse", tmp_path / "journal") as path:
        run(*MKFS_EXT4, path)
        yield path


@pytest.mark.parametrize(
    ("verb", "what"), [(verb, "all") for verb in VERBS] + [(verb, "read") for verb in _READING]
)
def test_a_disk_that_fails_at_a_verb_and_comes_back(
    verb: str, what: str, backing: Path, tmp_path: Path
) -> None:
    print(what, fails_and_comes_back(verb, FuseDisk(backing, what), tmp_path))
