# SPDX-License-Identifier: Apache-2.0
"""Manifests and blobs of an image, requested from the hosts of hosts.toml in turn.

A host that could not be connected moves to the end of the list for the rest of the pull, and for
other pulls for one minute.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from criagent.base.errors import (
    AgentError,
    CorruptError,
    NotFoundError,
    RegistryDeniedError,
    RegistryError,
    RegistrySilentError,
    RegistryUnreachableError,
)
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import Digest, digest_of, parse_digest
from criagent.image.documents.manifest import ACCEPTED, MAX_DOCUMENT, OCI_INDEX, Descriptor
from criagent.image.documents.reference import Reference
from criagent.image.hosts import auth_file
from criagent.image.hosts.auth_file import AuthFile
from criagent.image.hosts.credentials import RegistryAuth, credentials_for, same_registry
from criagent.image.hosts.hosts_toml import Host
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.hosts.registries import RegistryHosts
from criagent.image.registry.download import Downloader, Source
from criagent.image.registry.failure import Speaker, printable
from criagent.image.registry.progress import Progress
from criagent.image.registry.repository import ANSWER_TIMEOUT_S, HostRepository
from criagent.image.registry.retry import Budget, Clock, retried
from criagent.image.registry.session import Session
from criagent.image.registry.shared_downloads import SharedDownloads, Turn
from criagent.image.registry.transport import Answer, Request, Transport
from criagent.image.registry.urls import origin, redacted

T = TypeVar("T")

_MAX_TEXT = 1024  # characters of an error that names all hosts
_MAX_HOSTS = 8  # of them that an error names
_MAX_PAGES = 32  # of a list of referrers
_MAX_URLS = 8  # of a foreign layer that are tried
_NO_SUCH_CALL = {400, 405, 501}
_FOREIGN = ("foreign", "nondistributable")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A manifest or index as the registry served it, its digest checked."""

    digest: Digest
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How registries are reached, and the node's credentials; they can change between pulls."""

    hosts: RegistryHosts
    docker_config: Path
    proxies: ProxySettings
    auth_dir: str = ""  # of auth files for single namespaces
    helper_timeout_s: float = 30.0  # of a credential helper


@dataclass(frozen=True, slots=True)
class _Failed:
    host: Host
    error: AgentError


class RegistryClient:
    """Speaks to registries; closed by `close`."""

    def __init__(
        self,
        *,
        settings: Settings,
        files: BlobFiles,
        fs: Executor,
        range_bytes: int,
        clock: Clock | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,  # of a host when there is another
    ) -> None:
        self._settings = settings
        self._transport = Transport(settings.proxies, clock or Clock())
        self._downloader = Downloader(files, fs, range_bytes=range_bytes)
        self._shared = SharedDownloads(files, fs)
        self._answer_timeout_s = answer_timeout_s

    def configure(self, settings: Settings) -> None:
        """Use these from the next pull on; a proxy from the next request on."""
        self._settings = settings
        self._transport.proxies = settings.proxies

    @property
    def settings(self) -> Settings:
        """Those of the next pull."""
        return self._settings

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    def stalled(self, url: str) -> None:
        """Ask the server of this URL last for a while: a pull has waited for it in vain."""
        self._transport.reach.failed(origin(url), f"{origin(url)} did not answer")

    def session(
        self, reference: Reference, auth: RegistryAuth | None, extra: AuthFile | None = None
    ) -> Session:
        """Begin a pull; `extra` has credentials for this pull, before those of the node.

        Raises InvalidRequestError for bad settings, files or `auth`, RegistryDeniedError for an
        image that the settings block.
        """
        settings = self._settings
        hosts = settings.hosts.of(reference)
        node = auth_file.read_later(settings.docker_config)
        files = [*([] if extra is None else [extra]), *settings.hosts.credentials(node)]
        credentials = {}
        for host in hosts:
            mirror = host.mirror and not same_registry(host.authority, reference.registry)
            registry = host.authority if mirror else reference.registry
            name = f"{registry}/{host.repository or reference.repository}"
            credentials[host.url] = credentials_for(name, auth, files, mirror=mirror)
        return Session(
            reference=reference,
            credentials=credentials,
            hosts=hosts,
            helper_timeout_s=settings.helper_timeout_s,
        )

    async def manifest(self, session: Session, wanted: str, progress: Progress) -> Resolved:
        """The manifest or index `wanted` (a tag or digest).

        Raises NotFoundError, RegistryDeniedError, RegistryError, CorruptError.
        """
        headers = {"Accept": ", ".join(ACCEPTED)}

        async def once(repository: HostRepository) -> Resolved:
            async with repository.get(f"manifests/{wanted}", headers, document=True) as answer:
                content = await answer.document(MAX_DOCUMENT)
                kind = answer.header("Content-Type")
            return Resolved(
                digest=_checked(content, wanted, repository.url), media_type=kind, content=content
            )

        async def ask(repository: HostRepository) -> Resolved:
            if not repository.patient:
                return await once(repository)
            return await retried(lambda: once(repository), repository.budget())

        need = {"pull"} if ":" in wanted else {"pull", "resolve"}
        return await self._first(session, need, progress, ask)

    async def referrers(self, session: Session, digest: Digest, progress: Progress) -> list[bytes]:
        """The index of what refers to a manifest (distribution specification, "Listing Referrers").

        Its pages have the size of a document together. Registries without that call have it at a
        tag. Raises NotFoundError when there is none, and what `manifest` raises.
        """

        async def ask(repository: HostRepository) -> list[bytes]:
            pages: list[bytes] = []
            place = f"referrers/{digest}"
            while len(pages) < _MAX_PAGES:
                left = MAX_DOCUMENT - sum(map(len, pages))
                headers = {"Accept": OCI_INDEX}
                async with repository.get(place, headers, document=True) as answer:
                    pages.append(await answer.document(left))
                    link = answer.next_page
                if link is None:
                    return pages
                place = repository.place(link)
            raise CorruptError(
                f"{repository.url} lists the referrers of {digest} on more than {_MAX_PAGES} pages"
            )

        try:
            return await self._first(session, {"pull"}, progress, ask)
        except NotFoundError:
            pass
        except RegistryError as error:
            if error.status not in _NO_SUCH_CALL:
                raise
        tag = f"{digest.algorithm}-{digest.hex}"
        return [(await self.manifest(session, tag, progress)).content]

    async def document(self, session: Session, blob: Descriptor, progress: Progress) -> bytes:
        """A small blob, verified and not stored. Raises what `manifest` raises."""
        if blob.size > MAX_DOCUMENT:
            raise CorruptError(f"{session.reference}: {blob.digest} is too large for a document")

        async def once(repository: HostRepository) -> bytes:
            async with repository.get(f"blobs/{blob.digest}", {}, document=True) as answer:
                content = await answer.document(MAX_DOCUMENT)
            _checked(content, blob.digest, repository.url)
            return content

        async def ask(repository: HostRepository) -> bytes:
            if not repository.patient:
                return await once(repository)
            return await retried(lambda: once(repository), repository.budget())

        return await self._first(session, {"pull"}, progress, ask)

    async def fetch_blob(self, session: Session, blob: Descriptor, progress: Progress) -> None:
        """Fetch a blob into the blob files, verified and durable; no effect when it is there.

        Resumes the part of an earlier attempt. A blob that no host has is fetched from the URLs of
        its descriptor. Raises what `manifest` raises, ExhaustedError.
        """

        async def download(turn: Turn) -> None:
            async def ask(repository: HostRepository) -> None:
                await self._from_host(repository, blob, progress, turn)

            await self._first(session, {"pull"}, progress, ask)

        try:
            await self._shared.fetch(blob.parsed, session.reference.registry, download)
        except NotFoundError as exc:
            if not blob.urls and not any(mark in blob.media_type for mark in _FOREIGN):
                raise
            await self._foreign(blob, progress, exc)

    async def _from_host(
        self, repository: HostRepository, blob: Descriptor, progress: Progress, turn: Turn
    ) -> None:
        await self._downloader.download(
            blob,
            Source(
                where=repository.url,
                part=turn.part,
                get=lambda headers: repository.get(f"blobs/{blob.digest}", headers),
                received=turn.counting(progress.received),
                budget=repository.budget,
                patient=repository.patient,
            ),
        )

    async def _first(
        self,
        session: Session,
        need: set[str],
        progress: Progress,
        ask: Callable[[HostRepository], Awaitable[T]],
    ) -> T:
        """The first host's answer; when none succeeds, an error with the failure of every host."""
        able = [host for host in session.hosts if need <= host.capabilities]
        if not able:
            raise RegistryError(
                f"no host of {session.reference.registry} has the capability {', '.join(need)}; "
                "add it in hosts.toml"
            )
        silent = [host for host in able if self._silent(session, host)]
        reachable = [host for host in able if host not in silent]
        failures: list[_Failed] = []
        slow: list[Host] = []

        def turns() -> Iterator[tuple[Host, bool]]:
            last = [*silent, *reachable][-1]
            yield from ((host, host is last) for host in (*reachable, *silent))
            if not any(_answered(failed.error) for failed in failures):
                yield from ((host, True) for host in slow)  # nobody else has the image

        for host, patient in turns():
            if host.fallback_for and not self._gave_no_answer(session, host.fallback_for):
                continue
            repository = HostRepository(
                self._transport,
                session,
                host,
                progress,
                patient=patient,
                answer_timeout_s=self._answer_timeout_s,
            )
            try:
                return await ask(repository)
            except (RegistryError, NotFoundError, CorruptError) as exc:
                failures = [*(one for one in failures if one.host is not host), _Failed(host, exc)]
                if not _answered(exc):
                    session.silent.add(host.url)
                if isinstance(exc, RegistryUnreachableError):
                    session.unreachable.add(host.url)
                if isinstance(exc, RegistrySilentError):
                    slow.append(host)
                log.info("registry_host_failed", host=host.url, error=str(exc))
        raise _together(session, failures)

    def _silent(self, session: Session, host: Host) -> bool:
        return host.url in session.unreachable or self._transport.reach.failed_lately(
            origin(host.url)
        )

    def _gave_no_answer(self, session: Session, url: str) -> bool:
        return url in session.silent or self._transport.reach.failed_lately(origin(url))

    async def _foreign(self, blob: Descriptor, progress: Progress, missing: NotFoundError) -> None:
        """Fetch a layer that the registry does not distribute from the URLs of its descriptor."""
        failures = []
        for url in blob.urls[:_MAX_URLS]:
            try:
                origin(url)  # raises ValueError for other than http and https
                await self._from_url(url, blob, progress)
                return
            except ValueError as exc:
                failures.append(f"{printable(url, 200)}: {exc}")
            except (RegistryError, NotFoundError, CorruptError) as exc:
                failures.append(printable(str(exc)))
        tried = "; ".join(failures) or "its descriptor has no urls"
        raise NotFoundError(
            f"{missing}: {blob.digest} is a foreign layer, which registries do not distribute; "
            f"from its urls: {tried}"
        ) from None

    async def _from_url(self, url: str, blob: Descriptor, progress: Progress) -> None:
        @contextlib.asynccontextmanager
        async def get(headers: Mapping[str, str]) -> AsyncIterator[Answer]:
            with progress.receiving(redacted(url)):
                async with self._transport.open(Request(url=url, headers=headers)) as answer:
                    if answer.status >= 300:
                        now = self._transport.clock.time()
                        raise (await answer.refusal(Speaker.STRANGER, now)).error()
                    yield answer

        async def download(turn: Turn) -> None:
            source = Source(
                where=redacted(url),
                part=turn.part,
                get=get,
                received=turn.counting(progress.received),
                budget=lambda: Budget(self._transport.clock),
                patient=True,
            )
            await self._downloader.download(blob, source)

        await self._shared.fetch(blob.parsed, url, download)


def _checked(content: bytes, wanted: str, where: str) -> Digest:
    """The digest of `content`, which is `wanted` if that is a digest. Raises CorruptError."""
    if ":" not in wanted:
        return digest_of(content)
    expected = parse_digest(wanted)
    hasher = expected.hasher()
    hasher.update(content)
    if hasher.hexdigest() != expected.hex:
        raise CorruptError(f"manifest {wanted} from {where} has digest {digest_of(content)}")
    return expected


def _answered(error: AgentError) -> bool:
    return not isinstance(error, RegistryError) or error.status > 0


def _together(session: Session, failures: list[_Failed]) -> AgentError:
    """One error for all hosts, of the class of the registry's own answer.

    If the registry could not be reached, the class is that of the first mirror.
    """
    answers = [failed for failed in failures if _answered(failed.error)] or failures
    own = next((failed for failed in answers if not failed.host.mirror), answers[0])
    if len(failures) == 1:
        said = printable(str(own.error), _MAX_TEXT)
    else:
        each = _MAX_TEXT // min(len(failures), _MAX_HOSTS)
        said = "; ".join(
            f"{failed.host.url}: {printable(str(failed.error), each)}"
            for failed in failures[:_MAX_HOSTS]
        )
    missing = " not found" if isinstance(own.error, NotFoundError) else ""
    text = f"{session.reference}{missing}: {said}"
    if not isinstance(own.error, RegistryError):
        return type(own.error)(text)
    kind = RegistryDeniedError if isinstance(own.error, RegistryDeniedError) else RegistryError
    return kind(
        text,
        method=own.error.method,
        url=own.error.url,
        status=own.error.status,
        codes=own.error.codes,
    )
