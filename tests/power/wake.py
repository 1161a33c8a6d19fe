# SPDX-License-Identifier: Apache-2.0
"""The grounds whose power is cut, and what is looked at on a node that wakes up after it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.power.life import Expected, content
from tests.power.node import MKFS_EXT4, ROOT, run
from tests.support.cri_client import Cri


@dataclass(frozen=True)
class Ground:
    """A file system, its check, and the storage driver on it."""

    name: str
    driver: str
    mkfs: tuple[str, ...]
    check: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.driver}/{self.name}"


_E2FSCK = ("e2fsck", "-fn")
GROUNDS = [
    Ground("ext4", "overlay", MKFS_EXT4, _E2FSCK),
    Ground("xfs", "overlay", ("mkfs.xfs", "-q"), ("xfs_repair", "-n")),
    Ground("btrfs", "btrfs", ("mkfs.btrfs", "-q"), ("btrfs", "check")),
    Ground("ext4", "erofs", MKFS_EXT4, _E2FSCK),
    Ground("ext4", "native", MKFS_EXT4, _E2FSCK),
]


def after_cut(cri: Cri, marks: list[bytes], contents: dict[str, str]) -> list[str]:
    """What is wrong with the node that woke up."""
    found = Expected(marks).contradictions(cri)
    fsck = subprocess.run(
        [sys.executable, "-m", "criagent", "image", "fsck"],
        capture_output=True,
        text=True,
        check=False,
    )
    if fsck.returncode:
        found.append(f"fsck: {fsck.stdout}{fsck.stderr}")
    for tag in [tag for image in cri.images() for tag in image.repo_tags]:
        if content(cri, tag) != contents[tag]:
            found.append(f"{tag} is not what was pulled")
    for sandbox in cri.pods():
        cri.remove_pod(sandbox.id)
    for image in cri.images():
        cri.remove_image(image.id)
    run(sys.executable, "-m", "criagent", "image", "prune")
    return found + [f"left: {path}" for path in left_in_root()]


def left_in_root() -> list[Path]:
    """What is there of images and containers."""
    return [path for part in ("snapshots", "blobs", "containers") for path in _files(ROOT / part)]


def _files(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    trial = top / "trial"  # a driver's: what it learnt of the kernel once
    found = [path for path in top.rglob("*") if not path.is_dir() or path.name.isdigit()]
    return [path for path in found if trial not in path.parents]
