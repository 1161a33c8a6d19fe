# SPDX-License-Identifier: Apache-2.0
"""Additional stores: root directories of others whose images are used and never written.

A store that cannot be used is left out, with an error in the log: pulls replace what it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from criagent.base.errors import AgentError, CorruptError, UnsupportedError, WrongStateError
from criagent.image.snapshots.numbers import in_store
from criagent.model.image import Image, Snapshot
from criagent.store.read_only import stored_images

_DRIVERS = {"overlay", "native"}  # their layers are trees that a read-only file system can hold

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionalStore:
    """One store; `problem` says why nothing of it is used, "" = it is."""

    root: Path
    images: Sequence[Image] = ()
    layers: Sequence[Snapshot] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AdditionalStores:
    """Stores in the order in which they are asked."""

    stores: Sequence[AdditionalStore] = ()
    by_name: dict[str, Image] = field(default_factory=dict)

    def find(self, name: str) -> Image | None:
        """The image of a canonical tag, repo digest, id or bare hex id."""
        return self.by_name.get(name) or self.by_name.get(f"sha256:{name}")

    def all(self) -> list[Image]:
        """Every image, once."""
        return list({image.id: image for image in self.by_name.values()}.values())

    def holder(self, image: Image) -> AdditionalStore | None:
        """The store that has the image."""
        return next((s for s in self.stores if any(i.id == image.id for i in s.images)), None)

    def layers(self) -> list[Snapshot]:
        """Every layer; their numbers name the store."""
        return [layer for store in self.stores for layer in store.layers]


def opened(roots: Sequence[Path], driver: str) -> AdditionalStores:
    """The stores at `roots` for the storage driver `driver`. Synchronous."""
    stores = [_opened(index, root, driver) for index, root in enumerate(roots, 1)]
    names: dict[str, Image] = {}
    for image in (image for store in stores for image in store.images):
        for name in (image.id, *image.repo_tags, *image.repo_digests):
            names.setdefault(name, image)
    return AdditionalStores(stores, names)


def _opened(index: int, root: Path, driver: str) -> AdditionalStore:
    try:
        return _read(index, root, driver)
    except (AgentError, OSError) as exc:
        log.error("additional_store_not_used", store=str(root), error=str(exc))  # noqa: TRY400
        return AdditionalStore(root=root, problem=str(exc))


def _read(index: int, root: Path, driver: str) -> AdditionalStore:
    if driver not in _DRIVERS:
        raise UnsupportedError(
            f"the storage driver {driver} cannot use additional stores; overlay and native can"
        )
    found = stored_images(root / "state.db")
    if found.driver != driver:
        raise WrongStateError(
            f'the driver "{found.driver}" made the layers of {root}, and this agent has '
            f'"{driver}"; run `criagent storage migrate --to {driver}` with that directory before '
            "it becomes a store"
        )
    for layer in found.layers:
        if not (root / "snapshots" / str(layer.number) / "fs").is_dir():
            raise CorruptError(
                f"the files of layer {layer.key} are missing in {root}; make the store again"
            )
    layers = [
        dataclasses.replace(layer, number=in_store(index, layer.number)) for layer in found.layers
    ]
    there = {layer.key for layer in layers}
    images = [i for i in found.images if all(x.chain_id in there for x in i.layers)]
    return AdditionalStore(root=root, images=images, layers=layers)
