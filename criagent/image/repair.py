# SPDX-License-Identifier: Apache-2.0
"""fsck: what `audit` finds, and the repair of it."""

from __future__ import annotations

from dataclasses import dataclass

from criagent.base.aio import run_in
from criagent.base.errors import AgentError
from criagent.image import audit
from criagent.image.audit import Finding
from criagent.image.collect import Collector
from criagent.image.documents.digest import parse_digest
from criagent.image.layer_contents import Compared, Contents, LayerContents
from criagent.image.unpacking import ImageUnpacking


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found, and which layers it compared with their blobs."""

    findings: list[Finding]
    compared: Compared


@dataclass(frozen=True, slots=True)
class Repair:
    """Compares rows of images with the disk, for every storage driver."""

    unpacking: ImageUnpacking
    collector: Collector

    async def fsck(self, *, repair: bool, contents: Contents = Contents.NONE) -> Report:
        """Compare rows with the disk; `repair` drops what is broken and makes it again.

        `contents` says of which layers every file is compared with the blob, unpacked again.

        From the blobs that are kept, else by a pull without the caller's credentials. An image that
        neither restores is removed, for the next pull to fetch. What a pull uses is not dropped.
        Containers keep the rest of their damaged layers.
        """
        content = self.unpacking.content
        state = audit.State(
            images=content.store.all(),
            blobs=content.blobs.all(),
            snapshots=content.drivers.every(),
            unowned=frozenset(map(str, content.files.sizes())),
            lent=content.snapshots.store.lent(),
            profiles=self.collector.profiles.all(),
        )
        broken, compared = await self._broken(state, contents)
        findings = [
            finding.used_by(self.collector.users(state.layers[finding.key]))
            if finding.key in broken.snapshots
            else finding
            for finding in broken.findings
        ]
        if not repair:
            return Report(findings, compared)
        busy = {
            key
            for key in broken.snapshots
            if not await self.collector.drop_layer(state.layers[key])
        }
        busy |= {d for d in broken.blobs if not await self.collector.drop_blob(parse_digest(d))}
        lost: dict[str, str] = {}
        for image_id, driver in sorted(broken.images):
            why = await self._anew(image_id, driver)
            if why and not self._is_elsewhere(image_id, driver):
                lost.setdefault(image_id, why)
        for image_id in lost:
            await content.store.delete(image_id)
        await self.collector.collect()
        await content.drivers.empty_trash()
        repaired = [finding.repaired_unless(busy) for finding in findings]
        gone = [audit.removed(image_id, why) for image_id, why in lost.items()]
        return Report([*repaired, *gone], compared)

    async def _broken(
        self, state: audit.State, contents: Contents
    ) -> tuple[audit.Broken, Compared]:
        content = self.unpacking.content
        problems = {
            audit.key(layer): await content.drivers.of_driver(layer.driver).problem(layer)
            for layer in (*state.lent, *state.layers.values())
        }
        comparison = LayerContents(content, self.unpacking.unpackers, state)
        compared = await comparison.add_to(problems, contents)
        return await run_in(content.fs, audit.check, state, content.files, problems), compared

    async def _anew(self, image_id: str, driver: str) -> str:
        """Unpack what is missing of the image again, or pull it; why that failed, "" = it did not.

        Its row stays meanwhile, so that a pull gives back the same image with all its names.
        """
        image = self.unpacking.content.store.find(image_id)
        if image is None:
            return ""  # it was removed meanwhile
        try:
            return await self.unpacking.restore(image, driver)
        except AgentError as exc:
            return str(exc)

    def _is_elsewhere(self, image_id: str, driver: str) -> bool:
        """Whether another driver has the image, so that only this one needs a pull later."""
        image, others = self.unpacking.content.store.find(image_id), self.unpacking.unpackers
        return image is not None and any(
            self.unpacking.unpacked(image, other) for other in others if other != driver
        )
