# SPDX-License-Identifier: Apache-2.0
"""The section [storage], with a section of its own for each driver that has keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from criagent.config import checks
from criagent.config.keys import key
from criagent.config.storage_drivers import storage_driver


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageNative:
    """The storage driver native."""

    reflink: Literal["auto", "always", "never"] = key(
        "Whether copies share their blocks with the original until one of them is written: auto "
        "does where the file system can (xfs, btrfs), always refuses to copy where it cannot, "
        "never takes the space of the image for each container.",
        default="auto",
    )


def _compression(value: str) -> None:
    if value and not re.fullmatch(r"[a-z0-9]+(,[a-z]+=[0-9]+|,[0-9]+)*", value):
        raise ValueError(
            f"must be an algorithm of mkfs.erofs -z with its options, such as 'lz4hc' or "
            f"'zstd,level=3', not {value[:80]!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageErofs:
    """The storage driver erofs."""

    compression: str = key(
        "How the images of new layers are compressed: an algorithm of mkfs.erofs -z with its "
        'options, such as "lz4hc" or "zstd,level=3"; empty = not at all.',
        default="",
        check=_compression,
    )
    verity: Literal["off", "fs-verity"] = key(
        "fs-verity makes the kernel check every block of a layer that is read, and refuses to "
        "mount a layer that was changed. It needs ext4 with its feature verity, or btrfs. Layers "
        "that were unpacked without it are refused.",
        default="off",
    )
    backing: Literal["auto", "file", "loop"] = key(
        "How the image of a layer is mounted: from its file (Linux 6.12), or by a loop device; "
        "auto uses the file where the kernel can.",
        default="auto",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Directories and the socket of the agent."""

    root: Path = key(
        "Directory of what survives a reboot: the database, image layers, blobs and the writable "
        "layers of containers. The storage driver overlay needs ext4, btrfs, or xfs with ftype=1. "
        "Change it only while no container exists.",
        default=Path("/var/lib/criagent"),
    )
    driver: str = key(
        "How layers are stored: overlay, btrfs, erofs or native (docs/storage.md compares them). "
        "auto is the driver that made the layers in storage.root, or overlay. Change it only while "
        "no container and no image exists.",
        default="auto",
        check=storage_driver,
    )
    run_dir: Path = key(
        "Directory of what a reboot must clear: namespaces, mounts and bundles of running pods. "
        "Leave it on tmpfs. It must differ from storage.root.",
        default=Path("/run/criagent"),
    )
    socket: Path = key(
        "Unix socket of the CRI, for the kubelet's containerRuntimeEndpoint. The path may be at "
        "most 107 bytes long.",
        default=Path("/run/criagent/criagent.sock"),
        check=checks.socket_path,
    )
    native: StorageNative = field(default_factory=StorageNative)
    erofs: StorageErofs = field(default_factory=StorageErofs)
