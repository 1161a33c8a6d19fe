# SPDX-License-Identifier: Apache-2.0
"""Security profiles from registries: pull, list, remove, read.

A profile is a row, and two blobs that the row keeps: the manifest and the profile's document. It is
no image: lists of images do not have it, and only RemoveSecurityProfile removes it. Each read
compares the document with its digest and checks it again. The rules that decide which images may be
pulled decide about profiles, too: at every pull, since the kubelet calls it for every pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, NotFoundError, RegistryError
from criagent.base.single_flight import SingleFlight
from criagent.image.collect import Collector
from criagent.image.content import ImageContent
from criagent.image.documents.digest import Digest, parse_digest
from criagent.image.documents.reference import Reference
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.policy.admission import Admission, Subject
from criagent.image.profiles.artifact import MAX_PROFILE, invalid, pinned, profile_layer
from criagent.image.registry import Progress, RegistryClient, Session
from criagent.model.image import Blob, PulledProfile
from criagent.store.profiles import ProfileStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Key = tuple[str, RegistryAuth | None, str]  # the last one is the policy file


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityProfiles:
    """Verbs of security profiles. `check` raises InvalidRequestError for a wrong document."""

    store: ProfileStore
    content: ImageContent
    client: RegistryClient
    admission: Admission
    collector: Collector
    check: Callable[[bytes], object]
    limit_s: float  # of one pull
    flights: SingleFlight[_Key, None] = field(default_factory=SingleFlight)

    def all(self) -> list[PulledProfile]:
        """Every profile, by digest."""
        return sorted(self.store.all(), key=lambda profile: profile.digest)

    def states(self) -> dict[str, float]:
        """How many profiles have their blobs, and how many lack one. Reads a directory."""
        here = [self._is_here(profile.digest) for profile in self.store.all()]
        return {"complete": float(sum(here)), "incomplete": float(len(here) - sum(here))}

    async def pull(self, text: str, auth: RegistryAuth | None, namespace: str = "") -> bool:
        """Whether the profile `text`, a reference with a digest, was here; fetch it if not.

        Where rules for pods of the namespace have to admit it, a registry is asked each time.
        Raises InvalidRequestError for anything but a seccomp profile, SignatureRejectedError, and
        what registries raise.
        """
        reference = pinned(text)
        digest = str(reference.digest)
        policy = await self.admission.policy_for(namespace)
        if not policy and not self.admission.rules.verifier_dir:
            here = await run_in(self.content.fs, self._is_here, digest)
            if here and await self.store.refer(digest, text):
                return True
        await self.flights.join(
            (str(reference), auth, policy),
            lambda: self._pull(reference, text, auth, policy),
            name=f"pull-profile:{reference}",
        )
        await self.store.refer(digest, text)  # of a caller who joined
        return False

    async def remove(self, text: str) -> None:
        """Remove the profile with the digest `text`; no effect when there is none.

        Containers keep the filter that they were created with.
        """
        digest = str(parse_digest(text))
        if self.store.get(digest) is not None:
            await self.store.delete(digest)
            faults.reach("remove-security-profile:row")
            log.info("security_profile_removed", digest=digest)
        await self.collector.collect()

    def document(self, ref: str) -> bytes:
        """The document of the profile that `ref` names. Reads a file: call it in a thread.

        Raises NotFoundError if it was not pulled, CorruptError, InvalidRequestError.
        """
        profile = self.require(ref)
        try:
            return self.content.files.read(parse_digest(profile.layer), MAX_PROFILE)
        except FileNotFoundError:
            raise NotFoundError(
                f'security profile "{ref[:500]}" is incomplete on this node; pull it again'
            ) from None

    def require(self, ref: str) -> PulledProfile:
        """The profile that `ref` names. Raises NotFoundError, InvalidRequestError."""
        profile = self.store.get(str(pinned(ref).digest))
        if profile is None:
            raise NotFoundError(
                f'security profile "{ref[:500]}" has not been pulled; call PullSecurityProfile'
            )
        return profile

    async def close(self) -> None:
        """Stop the pulls in progress."""
        await self.flights.close()

    def _is_here(self, digest: str) -> bool:
        profile = self.store.get(digest)
        if profile is None:
            return False
        needed = (profile.digest, profile.layer)
        return all(self.content.files.has(parse_digest(one)) for one in needed)

    async def _pull(
        self, reference: Reference, text: str, auth: RegistryAuth | None, policy: str
    ) -> None:
        progress = Progress()
        session = self.client.session(reference, auth)
        try:
            async with asyncio.timeout(self.limit_s):
                await self._fetch(session, text, policy, progress)
        except TimeoutError:
            raise RegistryError(
                f"pull of security profile {reference} took longer than {self.limit_s:.0f} s "
                f"({progress.bytes} bytes received)"
            ) from None
        log.info("security_profile_pulled", profile=text, received=progress.bytes)

    async def _fetch(self, session: Session, text: str, policy: str, progress: Progress) -> None:
        reference, files, fs = session.reference, self.content.files, self.content.fs
        what = f"security profile {reference}"
        top = await self.client.manifest(session, str(reference.digest), progress)
        layer = await run_in(fs, profile_layer, what, top.content, top.media_type)
        subject = Subject(reference=reference, top=top, digests=(str(top.digest),))
        await self.admission.check(session, subject, policy, progress)
        faults.reach("pull-security-profile:resolved")
        async with self.content.claims.growing() as claim:
            await claim.add(str(top.digest), str(layer.parsed))
            await self.client.fetch_blob(session, layer, progress)
            faults.reach("pull-security-profile:blob")
            await run_in(fs, self._checked, what, layer.parsed)
            await run_in(fs, files.store, top.digest, top.content)
            faults.reach("pull-security-profile:stored")
            profile = PulledProfile(
                digest=str(top.digest),
                layer=str(layer.parsed),
                size=len(top.content) + layer.size,
                refs=(text,),
            )
            await self.store.put(
                profile,
                [
                    Blob(digest=profile.digest, size=len(top.content)),
                    Blob(digest=profile.layer, size=layer.size, media_type=layer.media_type),
                ],
            )
        faults.reach("pull-security-profile:committed")

    def _checked(self, what: str, digest: Digest) -> None:
        try:
            self.check(self.content.files.read(digest, MAX_PROFILE))
        except InvalidRequestError as exc:
            raise invalid(what, str(exc)) from None
