# SPDX-License-Identifier: Apache-2.0
"""Import an archive: the unpack worker stores its blobs, then its images are unpacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from criagent.base.aio import finish, run_in
from criagent.base.errors import AgentError, CorruptError, UnsupportedError
from criagent.image.archive.contents import Skipped, plain_copy
from criagent.image.archive.images import ArchivedImage, archived_images
from criagent.image.collect import Collector
from criagent.image.unpack.workers import UnpackWorkers
from criagent.image.unpacking import ImageUnpacking
from criagent.model.image import Image, Layer

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The images of an archive, and the entries that were skipped."""

    images: list[Image]
    skipped: list[Skipped]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveImport:
    """Imports archives."""

    unpacking: ImageUnpacking
    workers: UnpackWorkers
    collector: Collector

    async def read(self, path: Path) -> Imported:
        """Every image of the OCI or Docker archive at `path` that can be imported.

        When none can: InvalidRequestError for any other file, CorruptError for wrong content,
        NotFoundError when all are for other platforms, UnsupportedError, ExhaustedError.
        """
        content = self.unpacking.content
        try:
            async with content.claims.growing() as claim:
                async with (
                    content.claims.hold_all()
                ):  # the contents of the archive are not known yet
                    contents = await self.workers.read_archive(path, content.files.root)
                    found = await run_in(
                        content.fs,
                        archived_images,
                        contents.images,
                        content.files,
                    )
                    await claim.add(*(blob.digest for entry in found for blob in entry.blobs))
                imported = await self._import_all(found, contents.skipped)
            for image in imported.images:
                await self.collector.drop_spare(image)
            return imported
        finally:
            await finish(self._ended(path))

    async def _ended(self, path: Path) -> None:
        """Count what the worker stored, and drop its temporary files."""
        await run_in(self.unpacking.content.fs, _unlink, plain_copy(path))
        await run_in(self.unpacking.content.fs, self.unpacking.content.files.count)
        self.unpacking.content.drivers.empty_soon()

    async def _import_all(self, found: list[ArchivedImage], skipped: Sequence[Skipped]) -> Imported:
        images: list[Image] = []
        failures: dict[str, AgentError] = {}
        for entry in found:
            try:
                images.append(await self._import(entry))
            except (CorruptError, UnsupportedError) as exc:
                failures[(*entry.image.repo_tags, entry.image.id)[0]] = exc
        if failures and not images:
            raise next(iter(failures.values()))
        more = [Skipped(name, str(exc)[:500]) for name, exc in failures.items()]
        for one in (*skipped, *more):
            log.warning("image_import_skipped", entry=one.entry, reason=one.why)
        return Imported(images=images, skipped=[*skipped, *more])

    async def _import(self, entry: ArchivedImage) -> Image:
        async def fetch(_: Layer) -> None:
            """The blob is already there."""

        image = dataclasses.replace(entry.image, pulled_at_ns=self.unpacking.content.now_ns())
        unpacker = self.unpacking.unpackers[""]
        async with unpacker.unpacked(image.layers, fetch, lambda _: None) as snapshots:
            image = await self.unpacking.content.store.put(image, snapshots, entry.blobs)
        log.info("image_imported", id=image.id, tags=image.repo_tags)
        return image


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
