# SPDX-License-Identifier: Apache-2.0
"""Images of this node, unpacked for another storage driver, or again after a repair.

From the blobs that are kept, else by a pull without the caller's credentials: an image pulled for
one OCI runtime handler can so be used by another one, whose driver differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import AgentError, NotFoundError
from criagent.image.collect import Collector, blobs_of
from criagent.image.content import ImageContent
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.reference import parse_reference
from criagent.image.layers import LayerUnpacker
from criagent.image.pull import Puller, Target
from criagent.model.image import Image, Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUnpacking:
    """Unpacks images whose rows are there. `unpackers` are by storage driver."""

    content: ImageContent
    unpackers: Mapping[str, LayerUnpacker]
    puller: Puller
    collector: Collector

    def unpacked(self, image: Image, driver: str) -> bool:
        """Whether the driver has every layer of the image."""
        return all(map(self.unpackers[driver].has, image.layers))

    async def usable(self, image: Image, driver: str) -> bool:
        """Whether containers can have the image without a pull."""
        if self.unpacked(image, driver):
            return True
        return await run_in(self.content.fs, self._has_blobs, image, driver)

    async def unpack(self, image: Image, driver: str) -> None:
        """Unpack what the driver does not have, from blobs. Raises AgentError."""

        async def fetch(_: Layer) -> None:
            """The blob is already there."""

        async with (
            self.content.claims.hold(blobs_of(image)),
            self.unpackers[driver].unpacked(image.layers, fetch, lambda _: None) as snapshots,
        ):
            faults.reach("unpack-image:unpacked")
            await self.content.store.put(image, snapshots)
        faults.reach("unpack-image:committed")

    async def ensure(self, image: Image, driver: str) -> None:
        """Make the driver have every layer of `image`.

        Raises NotFoundError when neither blobs nor a pull without credentials bring them, and what
        unpacking raises.
        """
        if self.unpacked(image, driver):
            return
        if why := await self.restore(image, driver):
            raise NotFoundError(
                f"image {image.id} is not unpacked for the storage driver "
                f"{self.content.drivers.of_driver(driver).driver}, and its blobs are not kept: "
                f"{why}; pull it for that runtime handler (feature gate RuntimeClassInImageCriApi "
                "of the kubelet), or set storage.keep_blobs = true and pull it again"
            )

    async def restore(self, image: Image, driver: str) -> str:
        """Unpack it from blobs, or pull it again; why that failed, "" = it did not.

        Raises what unpacking of blobs that are there raises.
        """
        why = await self._restored(image, driver)
        if not why:
            await self.collector.drop_spare(image)
        return why

    async def _restored(self, image: Image, driver: str) -> str:
        if await run_in(self.content.fs, self._has_blobs, image, driver):
            await self.unpack(image, driver)
            return ""
        why = "it is of an archive"
        named = [("", digest) for digest in image.repo_digests]
        named += [(n.platform, digest) for n in image.elsewhere for digest in n.repo_digests]
        for platform, digest in named:
            target = Target(driver, platform)
            try:
                found = await self.puller.pull(parse_reference(digest), None, target)
            except AgentError as exc:
                why = str(exc)
            else:
                if found.id == image.id:
                    return ""
                why = f"{digest} is another image by now"
        return why

    def _has_blobs(self, image: Image, driver: str) -> bool:
        """Whether the documents and the blobs of all layers that are not unpacked are there."""
        layers = (x.digest for x in image.layers if not self.unpackers[driver].has(x))
        digests = (image.id, image.manifest_digest, *layers)
        return all(self.content.files.has(parse_digest(digest)) for digest in digests)
