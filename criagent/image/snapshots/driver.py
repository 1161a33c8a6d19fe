# SPDX-License-Identifier: Apache-2.0
"""What a storage driver is: the directories and mounts of snapshots, and nothing else.

A snapshot is a layer of images, or the writable layer of a container. The driver knows it by its
number alone; rows, keys and the order of removal are those of `snapshots.py`, which every driver
shares. Methods that are not coroutines run in a thread for files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from criagent.model.image import Snapshot


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do, and what its users have to know of it."""

    settles: bool  # layers are written side by side, then fitted to those below; else bottom-up
    selinux_labels: bool  # a mount can carry an SELinux label
    shared_page_cache: bool  # containers that read a file of their image share its memory


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MappedIds:
    """For a container in a user namespace: its pin, its root's ids on the node, and where the
    layers may be attached while they are mounted."""

    userns: Path
    uid: int
    gid: int
    lower_layers: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """Where something is mounted, for which user namespace, with which SELinux label ("" = none).

    Without `ids` it is for the node's own user namespace.
    """

    path: Path
    ids: MappedIds | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlace:
    """Where a worker writes a layer, and how it sees the layers below.

    `lower_layers` are their directories, topmost first: none for an image's lowest layer, None when
    they are not all written yet. With `in_place` there are none, since `root` has their content
    already. `scratch` is an existing directory on the same file system, for the worker's own files.
    """

    root: Path
    scratch: Path
    lower_layers: tuple[Path, ...] | None = ()
    in_place: bool = False


class SnapshotDriver(Protocol):
    """One way to store snapshots. Lists of numbers have the topmost layer first."""

    @property
    def name(self) -> str:
        """The value of `storage.driver` that chooses it."""

    @property
    def root(self) -> Path:
        """A directory on the file system that holds the snapshots; it exists after `prepare`."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def prepare(self) -> None:
        """Make the fixed directories; idempotent. Raises UnsupportedError when it can't work."""

    def userns_problem(self, ids: MappedIds) -> str:
        """Why a user namespace like that of `ids` can't have its mounts; "" = it can.

        `ids.lower_layers` is a scratch directory, which does not exist before and after.
        """

    async def create(self, number: int, parent: int | None) -> None:
        """Make the directories of a snapshot over the finished `parent`; None = there is no such.

        A driver that settles ignores `parent`. What an interruption leaves is for `trash`. Raises
        ExhaustedError, AgentError.
        """

    def layer_place(self, number: int, below: Sequence[int] | None) -> LayerPlace:
        """Where and over what a worker writes the layer; `below` = None: they are not all there."""

    def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Mount the layers `below` with the writable layer `number`.

        The parent of the mount point is made so that only the node's root passes through it, and
        the root of the user namespace of `at`. Raises OSError.
        """

    def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """Mount `layers`, which may be none, read-only for everyone. Raises OSError."""

    def volumes(self, number: int) -> Path:
        """The directory beside a writable layer for the volumes that its image declares.

        It may not exist. It is removed with the layer.
        """

    def counted(self, number: int) -> Sequence[Path]:
        """The directories whose content is the usage of the writable layer."""

    def problem(self, layer: Snapshot) -> str:
        """How a committed layer on disk differs from its row; "" when it does not."""

    def trash(self, number: int) -> None:
        """Take the snapshot away so that `empty_trash` deletes it; needs no space. Idempotent."""

    def empty_trash(self) -> None:
        """Delete what is in the trash. Logs what can't be deleted."""

    def sweep(self, known: frozenset[int]) -> None:
        """After a crash: delete what belongs to no number in `known`, and the trash."""
