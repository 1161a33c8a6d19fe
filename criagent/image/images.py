# SPDX-License-Identifier: Apache-2.0
"""Images as the CRI and the runtime see them: find, pull, remove, import, export, check.

What no image and no container needs any more is collected (`collect.py`) after each removal, at
start, at intervals, and on request: rows are deleted first, then files are renamed to the trash,
which is emptied in the background.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from criagent.base import faults
from criagent.base.aio import Background, run_in
from criagent.base.errors import (
    CorruptError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    RegistryError,
    UnsupportedError,
    WrongStateError,
)
from criagent.base.text import bounded
from criagent.image.blobs import BlobFiles
from criagent.image.collect import Collector, Pruned, blobs_of
from criagent.image.content import ImageContent
from criagent.image.documents import gojson
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.gojson import MalformedError
from criagent.image.documents.manifest import MAX_DOCUMENT
from criagent.image.documents.reference import (
    DEFAULT_REGISTRY,
    Reference,
    is_image_id,
    is_short,
    parse_reference,
)
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.layer_contents import Contents
from criagent.image.pull import Puller, Target
from criagent.image.repair import Repair, Report
from criagent.image.snapshots.keys import is_writable
from criagent.image.unpack.workers import UnpackWorkers
from criagent.image.unpacking import ImageUnpacking
from criagent.model.image import Image, Snapshot

if TYPE_CHECKING:
    from criagent.image.archive_import import Imported

_BARE_ID = 64
_SHORT, _MOST_TEXT = 160, 2048  # characters of a name, and of the errors of all it can mean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FsUsage:
    """Disk usage of images, or of writable layers. `mountpoint` is their directory."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp_ns: int


@dataclass(eq=False, slots=True, kw_only=True)
class Images:
    """Verbs of images. Names are references, ids, or unique id prefixes.

    `pinned` may be set again at run time.
    """

    content: ImageContent
    unpacking: ImageUnpacking
    workers: UnpackWorkers
    puller: Puller
    collector: Collector
    root: Path
    pinned: tuple[str, ...]
    collecting: Background = dataclasses.field(default_factory=lambda: Background("collector"))

    def all(self) -> list[Image]:
        """Every image, first those of this root directory."""
        own = self.content.store.all()
        ids = {image.id for image in own}
        return [*own, *(image for image in self.content.additional.all() if image.id not in ids)]

    def find(self, text: str, handler: str = "") -> Image | None:
        """The image of a reference or id, a reference for the platform of `handler`.

        Raises InvalidRequestError for any other text.
        """
        platform = self.content.platforms.get(handler, "")
        if found := self._known(text, platform):
            return found
        if text.startswith("sha256:"):
            parse_digest(text)
            return None
        if is_image_id(text):
            return None  # no image of this node
        known = (self._known(name, platform) for name in self._names(text))
        return next((image for image in known if image is not None), None)

    def _names(self, text: str) -> list[str]:
        """The names of images that `text` can mean. Raises InvalidRequestError for an invalid one.

        None for a short name that cannot be resolved: a pull says why.
        """
        parse_reference(text)
        try:
            references = self.puller.references(text)
        except InvalidRequestError:
            return []
        return [f"{one.name}@{one.digest}" if one.digest else str(one) for one in references]

    def _known(self, name: str, platform: str) -> Image | None:
        found = self.content.store.find(name, platform)
        # Additional stores have images of this node's platform.
        return found or (None if platform else self.content.additional.find(name))

    def added(self) -> list[Image]:
        """The images that only an additional store has."""
        return [image for image in self.all() if self.content.store.find(image.id) is None]

    def _own(self, image: Image) -> Image:
        """`image`, to change it. Raises WrongStateError when only an additional store has it."""
        store = self.content.additional.holder(image)
        if store is not None and self.content.store.find(image.id) is None:
            raise WrongStateError(
                f"image {image.id} is in the additional store {store.root}, which is read-only; "
                "take the store out of storage.additional_stores, or pull the image first"
            )
        return image

    def resolve(self, text: str, handler: str = "") -> Image:
        """Like `find`, but raises NotFoundError with the cure."""
        found = self.find(text, handler)
        if found is None:
            platform = self.content.platforms.get(handler, "")
            where = f" for {platform}, the platform of its runtime handler" if platform else ""
            raise NotFoundError(f'image "{text}" is not on this node{where}; pull it first')
        return found

    def shown_name(self, image: Image, asked: str) -> str:
        """The name of `image` for a user who requested `asked`.

        That name in full if it is one of the image's, else its first tag, digest, or id.
        """
        names = image.names
        try:
            wanted = [name for name in self._names(asked) if name in names]
        except InvalidRequestError:
            wanted = []
        return (*wanted, *names, image.id)[0]

    async def configuration(self, image: Image) -> dict[str, Any]:
        """The image's configuration as its registry has it. Raises OSError, CorruptError."""
        digest = parse_digest(image.id)
        store = self.content.additional.holder(image)
        own = store is None or self.content.store.find(image.id) is not None
        files = self.content.files if own or store is None else BlobFiles(store.root / "blobs")
        content = await run_in(self.content.fs, files.read, digest, MAX_DOCUMENT)
        try:
            document: dict[str, Any] = gojson.plain(gojson.parse(content))
        except MalformedError as exc:
            raise CorruptError(f"configuration {digest} cannot be read: {exc}") from None
        return document

    def is_pinned(self, image: Image) -> bool:
        """Whether a configured pattern protects it from the kubelet's image collection."""
        if self.content.store.find(image.id) is None:
            return True  # of an additional store, where the kubelet can't free space
        return any(fnmatch.fnmatchcase(name, p) for name in image.names for p in self.pinned)

    async def pull(
        self, text: str, auth: RegistryAuth | None, handler: str = "", namespace: str = ""
    ) -> Image:
        """PullImage for the OCI runtime handler `handler`, "" = the default one, and for a pod of
        the cluster's namespace: see `Puller.pull`.

        Raises InvalidRequestError for a malformed reference.
        """
        if text.startswith("sha256:") or (len(text) == _BARE_ID and self.content.store.find(text)):
            raise InvalidRequestError(f"{text[:80]!r} is an image id, not a reference to pull")
        references = self.puller.references(text)
        target = dataclasses.replace(
            self._target(handler),
            policy=await self.puller.policy_for(namespace),
            credentials=await self.puller.credentials_for(namespace, text),
        )
        try:
            image = await self._first(text, references, auth, target)
        except ExhaustedError:
            await self.collector.collect()  # its downloads take space that others need
            raise
        await self.collector.drop_spare(image)
        return image

    async def _first(
        self,
        text: str,
        references: Sequence[Reference],
        auth: RegistryAuth | None,
        target: Target,
    ) -> Image:
        """The first image that is there of those that a name can mean.

        Credentials for a short name that do not name their registry are for docker.io, which is
        what the kubelet takes it for.
        """
        failures: list[NotFoundError | RegistryError] = []
        nameless = auth is not None and not auth.server_address and is_short(text)
        for reference in references:
            own = None if nameless and reference.registry != DEFAULT_REGISTRY else auth
            try:
                return await self.puller.pull(reference, own, target)
            except (NotFoundError, RegistryError) as exc:
                failures.append(exc)
        if len(failures) == 1:
            raise failures[0]
        chosen = next((one for one in failures if isinstance(one, RegistryError)), failures[0])
        tried = "; ".join(bounded(str(one), _MOST_TEXT // len(failures)) for one in failures)
        raise type(chosen)(f'short name "{bounded(text, _SHORT)}": {tried}')

    async def ready_for(self, text: str, handler: str) -> Image | None:
        """The image of a reference or id, if containers of `handler` can have it without a pull."""
        image, driver = self.find(text, handler), self._driver(handler)
        if image is None or not driver or await self.unpacking.usable(image, driver):
            return image
        return None

    async def unpack_for(self, image: Image, handler: str) -> None:
        """Unpack the image for the storage driver of `handler`, if that does not have it.

        Raises NotFoundError when the blobs are not kept and a pull without credentials fails.
        """
        await self.unpacking.ensure(image, self._driver(handler))

    def _target(self, handler: str) -> Target:
        return Target(self._driver(handler), self.content.platforms.get(handler, ""))

    def _driver(self, handler: str) -> str:
        return self.content.drivers.driver_of(handler)

    async def tag(self, text: str, tag: str) -> Image:
        """Add a tag to an image, which moves there from any other; returns what is stored.

        Raises NotFoundError for an unknown image, InvalidRequestError for an invalid tag.
        """
        reference = parse_reference(tag).with_default_tag()
        if reference.tagged is None or reference.digest is not None:
            raise InvalidRequestError(
                f"{tag[:160]!r} has a digest; use a name without one as the tag"
            )
        image = await self.content.store.tag(self._own(self.resolve(text)).id, reference.tagged)
        faults.reach("tag-image:row")
        log.info("image_tagged", id=image.id, tag=reference.tagged)
        return image

    async def remove(self, text: str, handler: str = "") -> None:
        """Remove the image with all its names; unknown ones are fine.

        A reference names that of the platform of `handler`.

        Layers stay while a container uses them, as its root or as a volume.
        """
        image = self.find(text, handler)
        if image is not None:
            await self.content.store.delete(self._own(image).id)
            faults.reach("remove-image:row")
            log.info("image_removed", image=text, id=image.id)
        await self.collect()

    async def remove_name(self, text: str) -> tuple[tuple[str, ...], str]:
        """Remove one name from an image; returns the removed names, and the id of a removed image.

        An image is removed with its last tag, and the digests of a repository with its last tag. An
        id stands for all names. Raises NotFoundError for an unknown image.
        """
        image = self._own(self.resolve(text))
        left = _without(image, self.shown_name(image, text)) if self.is_name(text) else None
        if left is None:
            await self.remove(image.id)
            return image.names, image.id
        await self.content.store.rename(left)
        log.info("image_untagged", image=text, id=image.id)
        names = {*image.repo_tags, *image.repo_digests} - {*left.repo_tags, *left.repo_digests}
        return tuple(sorted(names)), ""

    def is_name(self, text: str) -> bool:
        """Whether `text` names an image by a reference, not by its id."""
        if text.startswith("sha256:"):
            return False
        try:
            names = self._names(text)
        except InvalidRequestError:
            return False
        found = ((name, self.content.store.find(name)) for name in names)
        return any(
            image is not None and name in {*image.repo_tags, *image.repo_digests}
            for name, image in found
        )

    def fs_usages(self) -> list[FsUsage]:
        """Disk usage of images and unfinished downloads by storage driver, from memory.

        That of storage.driver is first, and has the downloads. Unfinished ones are counted every
        ten seconds while pulls run, and when one fails.
        """
        blobs = self.content.blobs.all()
        used, files = self.collector.unowned()
        beside = (used + sum(blob.size for blob in blobs), files + len(blobs))
        return [
            self._usage(
                part.root,
                [s for s in part.store.all() if s.committed],
                beside if part is self.content.snapshots else (0, 0),
            )
            for part in self.content.drivers.all()
        ]

    def container_fs_usages(self) -> list[FsUsage]:
        """Disk usage of containers' writable layers at their last count, by storage driver."""
        return [
            self._usage(
                part.containers_root, [s for s in part.store.all() if not s.committed], (0, 0)
            )
            for part in self.content.drivers.all()
        ]

    def _usage(
        self, directory: Path, snapshots: list[Snapshot], beside: tuple[int, int]
    ) -> FsUsage:
        used, inodes = beside
        return FsUsage(
            mountpoint=str(directory),
            used_bytes=used + sum(s.used_bytes for s in snapshots),
            inodes_used=inodes + sum(s.inodes for s in snapshots),
            timestamp_ns=self.content.now_ns(),
        )

    def incoming(self) -> Path:
        """A directory on the root's disk for archives that are being received or written."""
        return self.root / "incoming"

    async def prepare(self) -> None:
        """Create directories, and drop the remains of a crash or a failed pull. Before the first
        call.
        """

        def call() -> None:
            self.content.files.prepare()
            self.incoming().mkdir(exist_ok=True, mode=0o700)
            for entry in self.incoming().iterdir():
                entry.unlink()

        await run_in(self.content.fs, call)
        for part in self.content.drivers.all():
            await part.prepare()
            for snapshot in part.store.all():
                if not snapshot.committed and not is_writable(snapshot):
                    await part.remove(snapshot.key)
        await self.collector.collect()
        self.collecting.start(self.collector.run)
        self.puller.failure_listeners.append(self.content.drivers.empty_soon)

    async def collect(self) -> Pruned:
        """Drop what no image, container, pull or import needs; space is freed in the background."""
        freed = await self.collector.collect()
        self.content.drivers.empty_soon()
        return freed

    async def prune(self) -> Pruned:
        """`collect`, but the space is free when it returns."""
        freed = await self.collector.collect()
        await self.content.drivers.empty_trash()
        return freed

    async def import_archive(self, path: Path) -> Imported:
        """Every image of an archive: see `ArchiveImport.read`."""
        from criagent.image.archive_import import ArchiveImport  # seldom used, and large

        return await ArchiveImport(
            unpacking=self.unpacking, workers=self.workers, collector=self.collector
        ).read(path)

    async def export_archive(self, names: Sequence[str], path: Path) -> None:
        """Write the images as one archive that is both an OCI layout and a Docker archive.

        Raises NotFoundError for an image or blob that is not there.
        """
        from criagent.image.archive.write import write_archive  # as above

        images = [(self.resolve(name), name) for name in names]
        for image, name in images:
            if image.artifact:
                raise UnsupportedError(
                    f'"{name}" is an OCI artifact ({image.artifact}); only images can be exported'
                )
        chosen = [(image, _tag(name, image)) for image, name in images]
        # An image that is removed meanwhile is written whole.
        async with self.content.claims.hold(d for image, _ in images for d in blobs_of(image)):
            await run_in(self.content.fs, write_archive, chosen, self.content.files, path)

    async def fsck(self, *, repair: bool, contents: Contents = Contents.NONE) -> Report:
        """As `Repair.fsck`."""
        check = Repair(self.unpacking, self.collector)
        return await check.fsck(repair=repair, contents=contents)

    async def close(self) -> None:
        """Stop pulls and background work."""
        await self.puller.close()
        await asyncio.sleep(0)  # what the ends of the pulls begin
        await self.collecting.stop()


def _without(image: Image, name: str) -> Image | None:
    """The image without that name; None when it has no other tag, or no other digest."""
    tags = tuple(tag for tag in image.repo_tags if tag != name)
    if name in image.repo_tags:
        repositories = {parse_reference(tag).name for tag in tags}
        digests = tuple(d for d in image.repo_digests if d.partition("@")[0] in repositories)
        return (
            dataclasses.replace(image, repo_tags=tags, repo_digests=digests)
            if tags or image.elsewhere
            else None
        )
    digests = tuple(d for d in image.repo_digests if d != name)
    return (
        dataclasses.replace(image, repo_digests=digests)
        if tags or digests or image.elsewhere
        else None
    )


def _tag(name: str, image: Image) -> str | None:
    """The tag to export under; an id, which may be short, and a digest have none."""
    if name.startswith("sha256:"):
        return None
    tag = parse_reference(name).with_default_tag().tagged
    return tag if tag in image.repo_tags else None


def temporary(directory: Path) -> Path:
    """A new empty file in `directory`."""
    fd, name = tempfile.mkstemp(dir=directory)
    os.close(fd)
    return Path(name)
