# SPDX-License-Identifier: Apache-2.0
"""In place of a driver that no handler has any more and that does not work here now.

Its snapshots cannot be mounted, but they can be removed: their rows go, so that pods can be deleted
and images forgotten. What is on its disk is deleted as orphaned if the driver ever comes back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path

from criagent.base.errors import UnavailableError
from criagent.config.storage_section import Storage
from criagent.image.snapshots.driver import (
    Capabilities,
    Counted,
    LayerPlace,
    MappedIds,
    MountPoint,
)
from criagent.image.snapshots.drivers.directories import DirectoryDriver
from criagent.model.image import Snapshot


class GoneDriver(DirectoryDriver):
    """The driver `name`, which does not work because of `reason`."""

    name = ""
    capabilities = Capabilities(settles=False, selinux_labels=False, shared_page_cache=False)

    def __init__(
        self, root: Path, section: Storage, fs: Executor, *, name: str, reason: str
    ) -> None:
        super().__init__(root, section, fs)
        self.name = name
        self._reason = reason

    async def prepare(self) -> None:
        """There is nothing to make."""

    async def userns_problem(self, ids: MappedIds) -> str:
        """It mounts nothing."""
        return self._reason

    async def create_layer(self, number: int, parent: int | None) -> None:
        """Raises UnavailableError."""
        raise self._gone()

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """Raises UnavailableError."""
        raise self._gone()

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """Raises UnavailableError."""
        raise self._gone()
        yield  # type: ignore[unreachable]  # makes it a generator

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Raises UnavailableError."""
        raise self._gone()

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """Raises UnavailableError."""
        raise self._gone()

    def counted(self, number: int, rootfs: Path) -> Counted:
        """Nothing can be counted."""
        return Counted(tops=[])

    @asynccontextmanager
    async def layer_tree(self, number: int) -> AsyncIterator[Path | None]:
        """Raises UnavailableError."""
        raise self._gone()
        yield  # type: ignore[unreachable]  # makes it a generator

    async def problem(self, layer: Snapshot) -> str:
        """It cannot be read."""
        return f"the storage driver {self.name} does not work: {self._reason}"

    async def health(self) -> str:
        """New pods do without it."""
        return ""

    async def trash(self, number: int) -> None:
        """Its row is all that can be deleted."""

    async def empty_trash(self) -> None:
        """There is none."""

    async def sweep(self, known: frozenset[int]) -> None:
        """There is nothing to compare."""

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            f"the storage driver {self.name} does not work: {self._reason}; make it work and "
            "restart criagent, or remove the pods that need it"
        )
