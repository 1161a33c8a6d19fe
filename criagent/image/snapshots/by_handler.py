# SPDX-License-Identifier: Apache-2.0
"""The snapshots of every storage driver in one root directory, and which handler has which.

`storage.driver` stores below `snapshots`, the driver NAME of an OCI runtime handler below
`snapshots-NAME`. A driver that no handler has any more is here for as long as it has snapshots.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from criagent.image.snapshots.snapshots import Snapshots
from criagent.model.image import Snapshot


def directory(root: Path, driver: str) -> Path:
    """Where the driver of a handler stores; "" = that of the root directory `root`."""
    return root / (f"snapshots-{driver}" if driver else "snapshots")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsByHandler:
    """The snapshots of each driver.

    `default` are those of storage.driver, whose name here is ""; `others` has the rest by name, and
    `drivers` the names by handler.
    """

    default: Snapshots
    others: Mapping[str, Snapshots] = dataclasses.field(default_factory=dict)
    drivers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def all(self) -> list[Snapshots]:
        """Those of storage.driver first."""
        return [self.default, *self.others.values()]

    def every(self) -> list[Snapshot]:
        """The snapshots of all drivers."""
        return [snapshot for part in self.all() for snapshot in part.store.all()]

    def driver_of(self, handler: str) -> str:
        """The driver of the images and containers of `handler`; "" = storage.driver."""
        return self.drivers.get(handler, "")

    def of_driver(self, driver: str) -> Snapshots:
        """The snapshots that the driver made."""
        return self.others[driver] if driver else self.default

    def of_handler(self, handler: str) -> Snapshots:
        """Where new containers of `handler` are."""
        return self.of_driver(self.driver_of(handler))

    def of_container(self, container_id: str) -> Snapshots:
        """Where the writable layer of the container is; the default ones when it has none."""
        for part in self.others.values():
            if part.store.owned(container_id) is not None:
                return part
        return self.default

    def in_use(self, driver: str) -> bool:
        """Whether images are unpacked for it: it is storage.driver, or a handler has it."""
        return not driver or driver in self.drivers.values()

    async def close(self) -> None:
        """Finish what their drivers have begun."""
        await asyncio.gather(*(part.close() for part in self.all()))

    async def sweep(self) -> None:
        """After a crash: drop directories without a row and the trash. Rows stay."""
        for part in self.all():
            await part.sweep()

    def empty_soon(self) -> None:
        """Empty their trash in the background."""
        for part in self.all():
            part.empty_soon()

    async def empty_trash(self) -> None:
        """Delete what removals moved away; it is gone when this returns."""
        for part in self.all():
            await part.empty_trash()

    async def health(self) -> str:
        """Why the node must not get more pods, with the remedy; "" = it may."""
        for part in self.all():
            if problem := await part.health():
                return problem
        return ""
