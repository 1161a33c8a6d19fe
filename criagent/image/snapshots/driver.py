# SPDX-License-Identifier: Apache-2.0
"""What a storage driver is: the directories and mounts of snapshots, and nothing else.

A snapshot is a layer of images, or the writable layer of a container. The driver knows it by its
number alone; rows, keys and the order of removal are those of `snapshots.py`, which every driver
shares.

    create_layer ─▶ layer_place (written by a worker) ─▶ commit_layer ─▶ mounted by any number
    create_container ─▶ mount_container ─▶ unmounted by its user ─▶ trash ─▶ empty_trash

Who mounts with a driver unmounts without it (man 2 umount2, MNT_DETACH): what is behind a mount has
to end with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from criagent.image.snapshots.tree_count import TreeCount
from criagent.model.image import Snapshot


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do on its file system, and what its users have to know of it."""

    settles: bool  # layers are written side by side, then fitted to those below; else bottom-up
    selinux_labels: bool  # a mount can carry an SELinux label
    shared_page_cache: bool  # containers that read a file of their image share its memory
    size_limits: bool = False  # it can limit the size of a writable layer
    no_size_limits: str = ""  # why it can't on this file system, with the cure
    separate_containers: bool = False  # writable layers can be on a file system of their own
    # The first of `counted().tops` is an overlay's upper directory, with the changes and no more.
    upper_directories: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MappedIds:
    """For a container in a user namespace: its pin, its root's ids on the node with how many follow
    them, and where the layers may be attached while they are mounted."""

    userns: Path
    uid: int
    gid: int
    lower_layers: Path
    length: int = 65536


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


class Count(Protocol):
    """Bytes and inodes, counted in slices."""

    @property
    def complete(self) -> bool:
        """Nothing had to be left out."""

    @property
    def busy_s(self) -> float:
        """How long it has taken so far."""

    @property
    def usage(self) -> tuple[int, int]:
        """Bytes on disk and inodes found so far."""

    def advance(self, until: float) -> bool:
        """Count on until time.monotonic() passes `until`; True = done. Raises OSError."""

    def close(self) -> None:
        """Give descriptors back; idempotent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a writable layer is charged with: what lies below `tops`, in bytes on disk and inodes.

    With `changed_after_ns` only inodes whose status changed after that time of the epoch: the
    others came with the image. A driver that knows without a walk has a count of its `own`.
    """

    tops: Sequence[Path]
    changed_after_ns: int = 0
    own: Callable[[], Count] | None = None

    def count(self) -> Count:
        """A new count of it."""
        if self.own is not None:
            return self.own()
        return TreeCount(*self.tops, changed_after_ns=self.changed_after_ns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Bytes on disk and inodes of a committed layer."""

    used_bytes: int
    inodes: int


class SnapshotDriver(Protocol):
    """One way to store snapshots. Lists of numbers have the topmost layer first."""

    @property
    def name(self) -> str:
        """The value of `storage.driver` that chooses it."""

    @property
    def root(self) -> Path:
        """A directory on the file system that holds the snapshots; it exists after `prepare`."""

    @property
    def containers_root(self) -> Path:
        """The same of writable layers; it is `root` unless they are on another file system."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    async def prepare(self) -> None:
        """Make what it needs on disk; idempotent. Raises UnsupportedError when it can't work."""

    async def close(self) -> None:
        """End what it has begun. Mounts stay: containers use them."""

    async def userns_problem(self, ids: MappedIds) -> str:
        """Why a user namespace like that of `ids` can't have its mounts; "" = it can.

        `ids.lower_layers` is a scratch directory, which does not exist before and after.
        """

    async def create_layer(self, number: int, parent: int | None) -> None:
        """Make an empty layer over the committed `parent`; None = it is the lowest.

        A driver that settles ignores `parent`. What an interruption leaves is for `trash`. Raises
        ExhaustedError, AgentError.
        """

    def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AbstractAsyncContextManager[LayerPlace]:
        """Where and over what a worker writes the layer, valid within the block.

        `below` = None: they are not all there.
        """

    async def commit_layer(self, number: int) -> Taken | None:
        """Nothing more is written to it: give it its final form, and tell what that takes.

        None = what the worker found. What the driver writes is on stable storage when it returns;
        the worker's own files are by syncfs of `root`. When it fails it may be called again if the
        driver settles. Raises ExhaustedError, AgentError.
        """

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """Make a writable layer over the committed `parent`; None = the image has no layers.

        It can grow by `limit_bytes`; 0 = without a limit. Raises as `create_layer`, and
        UnsupportedError for a limit without `capabilities.size_limits`.
        """

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Mount the layers `below` with the writable layer `number`.

        The parent of the mount point is made so that only the node's root passes through it, and
        the root of the user namespace of `at`. Raises OSError, AgentError.
        """

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """Mount `layers`, which may be none, read-only for everyone. Raises OSError, AgentError."""

    def volumes(self, number: int) -> Path:
        """The directory beside a writable layer for the volumes that its image declares.

        It may not exist. It is removed with the layer.
        """

    def counted(self, number: int, rootfs: Path) -> Counted:
        """What the usage of the writable layer is, which is mounted at `rootfs` if at all."""

    def layer_tree(self, number: int) -> AbstractAsyncContextManager[Path | None]:
        """The files of a layer as its worker left them, to be read within the block.

        None when the driver keeps another form of them, of which `problem` reads everything. Raises
        OSError, AgentError.
        """

    async def problem(self, layer: Snapshot) -> str:
        """How a committed layer on disk differs from its row; "" when it does not."""

    async def health(self) -> str:
        """Why the node must not get more pods, with the cure; "" = it may."""

    def used_shares(self) -> Mapping[str, float]:
        """How full the driver's own store is, 0 to 1, by part; none when it has no store beside the
        file system of `root`. Synchronous and short: a thread of the metrics calls it."""

    async def facts(self) -> Mapping[str, str]:
        """For `criagent storage info`: names and values of what an operator may want to know."""

    async def trash(self, number: int) -> None:
        """Take the snapshot away so that `empty_trash` deletes it; needs no space. Idempotent."""

    async def empty_trash(self) -> None:
        """Delete what is in the trash. Logs what can't be deleted."""

    async def sweep(self, known: frozenset[int]) -> None:
        """After a crash: delete what belongs to no number in `known`, and the trash."""
