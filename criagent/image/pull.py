# SPDX-License-Identifier: Apache-2.0
"""Pull: reference → manifest → blobs → snapshots → one commit that makes the image visible.

One pull per reference and credentials runs at a time; callers join it, and it stops when the last
one cancels. Blobs arrive and layers unpack in parallel; downloads stay for the next attempt, until
they are collected (`collect.py`). A pull claims what it relies on, and holds no lock while it waits
for a registry.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import alongside, run_in, staged
from criagent.base.errors import AgentError, CorruptError, RegistryError, UnsupportedError
from criagent.base.single_flight import SingleFlight
from criagent.image.claims import GrowingClaim
from criagent.image.content import ImageContent
from criagent.image.documents.artifact import artifact_layers
from criagent.image.documents.choose import UNREADABLE, Answer, Found, Search, Wanted
from criagent.image.documents.digest import Digest, parse_digest
from criagent.image.documents.manifest import (
    MAX_DOCUMENT,
    ArtifactError,
    Configuration,
    Descriptor,
    Document,
    image_configuration,
    image_layers,
    parse_document,
)
from criagent.image.documents.platforms import Platform, host_platform, parse_platform
from criagent.image.documents.reference import Reference
from criagent.image.hosts.auth_file import AuthFile, parsed
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.hosts.namespaced import taken
from criagent.image.layers import LayerUnpacker
from criagent.image.policy.admission import Admission, Rules, Subject
from criagent.image.registry import Progress, RegistryClient, Resolved, Session
from criagent.model.image import Blob, Image, ImageConfig, Layer, PlatformNames

_COUNT_S = 10.0  # interval at which downloads are counted for ImageFsInfo

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What an image is pulled for: a storage driver and a platform such as linux/arm64, and under
    which policy file.

    "" = storage.driver, this node's platform, and none. `credentials` is the content of an auth
    file for this pull alone.
    """

    driver: str = ""
    platform: str = ""
    policy: str = ""
    credentials: bytes = dataclasses.field(default=b"", repr=False)


_Key = tuple[str, RegistryAuth | None, Target]
_THIS_NODE = Target()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The manifest for this platform with its parsed configuration.

    `artifact` is the kind of an OCI artifact, whose configuration says nothing of containers.
    """

    digest: Digest
    document: Document
    configuration: Configuration
    config: Descriptor
    layers: tuple[Layer, ...]
    read: tuple[Descriptor, ...] = ()  # configurations of other platforms, read to choose
    artifact: str = ""


class Puller:
    """The PullImage verb below `Images`."""

    def __init__(
        self,
        *,
        client: RegistryClient,
        content: ImageContent,
        unpackers: Mapping[str, LayerUnpacker],
        admission: Admission,
        parallel_blobs: int,
        progress_timeout_s: float,
    ) -> None:
        self._client = client
        self._admission = admission
        self._content = content
        self._unpackers = unpackers  # by storage driver
        self._parallel = parallel_blobs
        self._timeout_s = progress_timeout_s
        self._flights: SingleFlight[_Key, Image] = SingleFlight(self._landed)
        self._progress: dict[str, Progress] = {}  # of pulls in progress, by reference
        self.results: Counter[str] = Counter()  # pulls ended: ok, failed, cancelled
        self.failure_listeners: list[Callable[[], None]] = []  # called when one is given up

    def configure(self, *, parallel_blobs: int, progress_timeout_s: float, rules: Rules) -> None:
        """Use these limits and rules from the next pull on; the time limit for pulls in progress,
        too.
        """
        self._parallel, self._timeout_s = parallel_blobs, progress_timeout_s
        self._admission.rules = rules

    @property
    def running(self) -> int:
        """The number of pulls in progress or being stopped; callers who join one add none."""
        return len(self._flights)

    def progress(self, reference: Reference) -> tuple[int, int]:
        """Bytes that the pull of `reference` has received, and those of the layers that it needs.

        The latter are 0 until they are known; both are without a pull.
        """
        found = self._progress.get(str(reference))
        return (found.bytes, found.expected) if found else (0, 0)

    def references(self, text: str) -> list[Reference]:
        """As `RegistryHosts.references`."""
        return self._client.settings.hosts.references(text)

    async def credentials_for(self, namespace: str, text: str) -> bytes:
        """The auth file for a pull by pods of a namespace of the cluster; b"" = none.

        It is removed. Raises InvalidRequestError.
        """
        folder = self._client.settings.auth_dir
        if not folder or not namespace:
            return b""
        return await run_in(self._content.fs, taken, Path(folder), namespace, text)

    async def policy_for(self, namespace: str) -> str:
        """The policy file for pods of a namespace of the cluster, "" = none."""
        return await self._admission.policy_for(namespace)

    async def pull(
        self, reference: Reference, auth: RegistryAuth | None, target: Target = _THIS_NODE
    ) -> Image:
        """The image of `reference` for the platform of `target`, unpacked for its driver.

        Raises NotFoundError, RegistryError and its kinds, SignatureRejectedError, CorruptError,
        ExhaustedError.
        """
        work = partial(self._watched, reference, auth, target)
        key = (str(reference), auth, target)
        return await self._flights.join(key, work, name=f"pull:{reference}")

    async def close(self) -> None:
        """Stop the pulls in progress; their parts stay for the next attempt."""
        await self._flights.close()

    def _landed(self, task: asyncio.Task[Image]) -> None:
        if task.cancelled():
            self.results["cancelled"] += 1
        else:
            self.results["failed" if task.exception() else "ok"] += 1
        if task.cancelled() or task.exception():
            for listener in self.failure_listeners:
                listener()

    async def _watched(
        self, reference: Reference, auth: RegistryAuth | None, target: Target
    ) -> Image:
        """The pull, ended when a server has sent nothing for the configured time."""
        progress = Progress()
        self._progress[str(reference)] = progress
        try:
            session = self._client.session(reference, auth, _extra(reference, target))
            async with alongside(self._pull(session, target, progress)) as work:
                while not work.done():
                    left = self._timeout_s - progress.stalled_s
                    if left <= 0:
                        raise self._stalled(reference, progress)
                    await asyncio.wait({work}, timeout=min(left, _COUNT_S))
                    if not work.done():
                        await run_in(self._content.fs, self._content.files.count)
                image = work.result()
        except BaseException:
            await run_in(self._content.fs, self._content.files.count)
            raise
        finally:
            if self._progress.get(str(reference)) is progress:
                del self._progress[str(reference)]
        if self._content.files.parts_usage.files:  # it may have finished what was counted
            await run_in(self._content.fs, self._content.files.count)
        return image

    def _stalled(self, reference: Reference, progress: Progress) -> RegistryError:
        """The error of a pull whose servers are silent; the next pull asks others first."""
        for server in progress.awaited:
            self._client.stalled(server)
        return RegistryError(
            f"pull of {reference} stalled: {' and '.join(progress.awaited)} has sent no byte for "
            f"{self._timeout_s:.0f} s ({progress.bytes} received before); repair that server, or "
            "raise registry.progress_timeout_s"
        )

    async def _pull(self, session: Session, target: Target, progress: Progress) -> Image:
        reference, unpacker = session.reference, self._unpackers[target.driver]
        wanted = str(reference.digest) if reference.digest else reference.tag or "latest"
        with staged(str(reference), "manifest"):
            top = await self._client.manifest(session, wanted, progress)
        faults.reach("pull-image:resolved")
        async with self._content.claims.growing() as claim:
            with staged(str(reference), "configuration"):
                chosen = await self._choose(session, top, progress, (target.platform, claim))
            subject = Subject(
                reference=reference, top=top, digests=(str(top.digest), str(chosen.digest))
            )
            with staged(str(reference), "signature policy"):
                await self._admission.check(session, subject, target.policy, progress)
            image = _named(
                _image(chosen, self._content.now_ns()), top.digest, reference, target.platform
            )
            await claim.add(*(layer.digest for layer in image.layers))
            rows = self._documents(top, chosen)
            if self._content.keep_blobs:
                rows += [
                    Blob(digest=x.digest, size=x.size, media_type=x.media_type)
                    for x in image.layers
                    if not unpacker.lent(x)
                ]
            sources = {str(layer.parsed): layer for layer in chosen.document.layers or ()}

            progress.expected = sum(x.size for x in image.layers if not unpacker.has(x))

            async def fetch(layer: Layer) -> None:
                async with gate:
                    with staged(layer.digest, "layer download"):
                        await self._client.fetch_blob(session, sources[layer.digest], progress)
                faults.reach("pull-image:blob")

            gate = asyncio.Semaphore(self._parallel)
            async with unpacker.unpacked(image.layers, fetch, progress.unpacked) as snapshots:
                # A layer that a container kept may have outlived its blob, which an export needs.
                own = [layer for layer in image.layers if not unpacker.lent(layer)]
                kept = own if self._content.keep_blobs else ()
                for layer in await run_in(self._content.fs, self._without_blob, kept):
                    await fetch(layer)
                faults.reach("pull-image:unpacked")
                image = await self._content.store.put(image, snapshots, rows)
        faults.reach("pull-image:committed")
        log.info("image_pulled", image=str(reference), id=image.id, received=progress.bytes)
        return image

    def _without_blob(self, layers: Sequence[Layer]) -> list[Layer]:
        return [
            layer for layer in layers if not self._content.files.has(parse_digest(layer.digest))
        ]

    def _documents(self, top: Resolved, chosen: Chosen) -> list[Blob]:
        """Blob rows of the manifests and the configuration."""
        digests = {str(top.digest), str(chosen.digest)}
        sizes = self._content.files.sizes()
        manifests = [
            Blob(digest=digest, size=sizes.get(parse_digest(digest), 0))
            for digest in sorted(digests)
        ]
        own = () if chosen.artifact else (chosen.config,)
        configs = {config.digest: config.size for config in (*chosen.read, *own)}
        return [*manifests, *(Blob(digest=digest, size=configs[digest]) for digest in configs)]

    async def _choose(
        self,
        session: Session,
        top: Resolved,
        progress: Progress,
        wanted_for: tuple[str, GrowingClaim],
    ) -> Chosen:
        platform, claim = wanted_for
        host = parse_platform(platform) if platform else host_platform()
        read: list[Descriptor] = []

        async def answer(wanted: Wanted) -> Answer:
            await claim.add(str(wanted.descriptor.parsed))
            if wanted.is_manifest:
                digest = wanted.descriptor.digest
                inner = await self._client.manifest(session, digest, progress)
                return Answer(inner.content, inner.media_type)
            content = await self._configuration(session, wanted.descriptor, progress)
            read.append(wanted.descriptor)
            return Answer(content)

        await claim.add(str(top.digest))
        # Parsing foreign documents may take long: not on the loop.
        document = await run_in(self._content.fs, parse_document, top.content, top.media_type)
        found = await self._searched(Search(document, top.digest, host), answer)
        if found.content:
            await run_in(self._content.fs, self._content.files.store, found.digest, found.content)
        await run_in(self._content.fs, self._content.files.store, top.digest, top.content)
        config = found.document.config
        if config is None:
            raise CorruptError(f"{session.reference}: the manifest has no configuration")
        await claim.add(str(config.parsed))
        content = await self._configuration(session, config, progress)
        try:
            configuration, layers, artifact = await run_in(
                self._content.fs, _content_of, found.document, content
            )
        except (UnsupportedError, CorruptError) as exc:
            raise type(exc)(f"{session.reference}: {exc}") from None
        return Chosen(
            digest=found.digest,
            document=found.document,
            configuration=configuration,
            config=config,
            layers=layers,
            read=tuple(read),
            artifact=artifact,
        )

    async def _searched(
        self, search: Search, answer: Callable[[Wanted], Awaitable[Answer]]
    ) -> Found:
        """The manifest for this machine; `answer` reads what the search wants."""
        step = await run_in(self._content.fs, search.start)
        while isinstance(step, Wanted):
            try:
                content: Answer | AgentError = await answer(step)
            except UNREADABLE as exc:
                content = exc
            step = await run_in(self._content.fs, search.next, content)
        return step

    async def _configuration(
        self, session: Session, config: Descriptor, progress: Progress
    ) -> bytes:
        if config.size > MAX_DOCUMENT:
            raise CorruptError(f"{session.reference}: the configuration is too large")
        await self._client.fetch_blob(session, config, progress)
        return await run_in(self._content.fs, self._content.files.read, config.parsed, MAX_DOCUMENT)


def _extra(reference: Reference, target: Target) -> AuthFile | None:
    if not target.credentials:
        return None
    return parsed(target.credentials, f"registry.namespaced_auth_dir for {reference.name}")


def _content_of(document: Document, config: bytes) -> tuple[Configuration, tuple[Layer, ...], str]:
    """Configuration and layers, and the kind of an artifact. Raises CorruptError,
    UnsupportedError.
    """
    try:
        configuration = image_configuration(document, config)
    except ArtifactError as exc:
        none = Configuration(
            config=ImageConfig(), diff_ids=(), platform=Platform("", ""), created=""
        )
        return none, artifact_layers(document, config, exc.kind), exc.kind
    return configuration, image_layers(document, configuration), ""


def _image(chosen: Chosen, now_ns: int) -> Image:
    return Image(
        id=str(chosen.digest if chosen.artifact else chosen.config.parsed),
        manifest_digest=str(chosen.digest),
        config=chosen.configuration.config,
        layers=chosen.layers,
        size=chosen.config.size + sum(layer.size for layer in chosen.layers),
        platform="" if chosen.artifact else str(chosen.configuration.platform),
        created=chosen.configuration.created,
        pulled_at_ns=now_ns,
        artifact=chosen.artifact,
    )


def _named(image: Image, top: Digest, reference: Reference, platform: str) -> Image:
    """The image with the names of `reference` for `platform`, "" = this node's."""
    tagged = None if reference.digest is not None else reference.tagged
    tags, digests = (tagged,) if tagged else (), (f"{reference.name}@{top}",)
    if not platform:
        return dataclasses.replace(image, repo_tags=tags, repo_digests=digests)
    names = PlatformNames(platform=platform, repo_tags=tags, repo_digests=digests)
    return dataclasses.replace(image, elsewhere=(names,))
