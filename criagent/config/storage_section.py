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

_LAST_PROJECT_IDS = 2**32 - (1 << 20)  # room for a million of them


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOverlay:
    """The storage driver overlay."""

    volatile: bool = key(
        "Whether fsync and sync in a container, and the end of its root file system, write nothing "
        "to the disk (mount option volatile): faster, and what a container wrote to its root may "
        "be lost when the node crashes. Volumes are not affected.",
        default=False,
    )


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


LIMIT_ANNOTATION = "storage.criagent.io/container-limit"


def _annotations(names: tuple[str, ...]) -> None:
    for name in names:
        if name != LIMIT_ANNOTATION:
            raise ValueError(f"{name[:160]!r} is unknown; the only one is {LIMIT_ANNOTATION!r}")


def _project_id(number: int) -> None:
    if not 0 < number < _LAST_PROJECT_IDS:
        raise ValueError(f"must be from 1 to {_LAST_PROJECT_IDS - 1}, not {number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDevmapper:
    """The storage driver devmapper. It needs devices, the name of a pool, or a size of files."""

    data_device: str = key(
        "Block device that holds the data of the thin pool. The agent activates the pool at its "
        "start. It must not be in use.",
        default="",
    )
    metadata_device: str = key(
        "Block device that holds the metadata of the thin pool, about a thousandth of the data. "
        "That of a new pool must begin with zeros.",
        default="",
    )
    pool: str = key(
        "Name of the thin pool in device-mapper. Without devices it is a pool that something else "
        "activates, LVM for example, and that no other program makes volumes in. Empty is a name "
        "that belongs to storage.root.",
        default="",
        check=checks.dm_name,
    )
    loop_size_bytes: int = key(
        "For trials: size of a sparse file in storage.root that holds the data of the thin pool, "
        "beside one for its metadata. 0 is without files. It can be raised later.",
        default=0,
        check=checks.from_zero,
    )
    base_size_bytes: int = key(
        "Size of the file system of each container, image included, unless a limit says "
        "otherwise. Blocks are allocated when they are written. A change applies to a new "
        "storage.root.",
        default=10 << 30,
        check=checks.above_zero,
    )
    filesystem: Literal["ext4", "xfs"] = key(
        "File system of the volumes. A change applies to a new storage.root.", default="ext4"
    )
    watermark_percent: int = key(
        "From this part of the pool's data or metadata on, RuntimeReady is false, so that no more "
        "pods come: a full pool fails the writes of running containers.",
        default=90,
        check=checks.percent,
    )
    discard: Literal["auto", "always", "never"] = key(
        "Whether the blocks of a deleted volume are discarded on the pool's devices as well: auto "
        "does with files, which shrink.",
        default="auto",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageZfs:
    """The storage driver zfs. It needs a dataset."""

    dataset: str = key(
        "ZFS dataset for the agent alone, with mountpoint=legacy: `zfs create -o mountpoint=legacy "
        "POOL/criagent`. Snapshots are datasets below it. Change it only while no container and no "
        "image exists.",
        default="",
        check=checks.zfs_dataset,
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
        "How layers are stored: overlay, btrfs, devmapper, zfs, erofs, fuse-overlayfs or native "
        "(docs/storage.md compares them). auto is the driver that made the layers in storage.root, "
        "or overlay. To change it, run criagent storage migrate.",
        default="auto",
        check=storage_driver,
    )
    containers_root: str = key(
        "Directory for the writable layers of containers and the volumes that images declare, on "
        "another file system than storage.root; empty = in storage.root. Mount that file system "
        "before the agent starts. For the storage drivers overlay, native, erofs and "
        "fuse-overlayfs. Change it only while no container exists.",
        default="",
        check=checks.optional_path,
    )
    container_limit_bytes: int = key(
        "Limit in bytes of what each container may write to its writable layer and to the volumes "
        "that its image declares; 0 = without a limit. It needs the storage driver btrfs, or xfs "
        "or ext4 mounted with prjquota.",
        default=0,
        check=checks.from_zero,
    )
    allowed_annotations: tuple[str, ...] = key(
        "Annotations of pods and containers that are obeyed: "
        f'"{LIMIT_ANNOTATION}" replaces storage.container_limit_bytes. Whoever may create pods can '
        "set them.",
        default=(),
        check=_annotations,
    )
    project_ids_from: int = key(
        "Limits on xfs and ext4 take project ids from this one upwards. Change it when another "
        "program of the node uses ids in that range.",
        default=0x60000000,  # the kubelet's are from 1048577 upwards
        check=_project_id,
    )
    keep_blobs: bool = key(
        "Keep the compressed layers of images after they are unpacked. They take about a third of "
        "the space of images; without them an image cannot be exported, and a damaged layer is "
        "pulled again.",
        default=True,
    )
    additional_stores: tuple[Path, ...] = key(
        "Root directories of other agents whose images are used without pulling them and which are "
        "never written, in the order in which they are asked. They need the same storage driver, "
        "overlay or native.",
        default=(),
        check=checks.stores,
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
    overlay: StorageOverlay = field(default_factory=StorageOverlay)
    native: StorageNative = field(default_factory=StorageNative)
    devmapper: StorageDevmapper = field(default_factory=StorageDevmapper)
    zfs: StorageZfs = field(default_factory=StorageZfs)
    erofs: StorageErofs = field(default_factory=StorageErofs)
