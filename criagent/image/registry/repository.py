# SPDX-License-Identifier: Apache-2.0
"""One host's copy of a repository: challenges are answered, refusals are errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode, urljoin, urlsplit

from criagent.base.errors import CorruptError, RegistryDeniedError, RegistryError
from criagent.image.hosts.credentials import Credentials
from criagent.image.hosts.hosts_toml import Host
from criagent.image.registry.challenge import Challenge
from criagent.image.registry.failure import Refusal, Speaker
from criagent.image.registry.progress import Progress
from criagent.image.registry.retry import Budget
from criagent.image.registry.session import Session
from criagent.image.registry.token import fetch_token, question
from criagent.image.registry.transport import Answer, Request, Transport
from criagent.image.registry.urls import Origin, origin

_TOO_LITTLE = "insufficient_scope"  # RFC 6750, section 3.1: another token has no more rights
ANSWER_TIMEOUT_S = 30.0  # as for connecting
_ROUNDS = 4  # challenges answered for one request: tokens end, and a Basic may follow a Bearer


class HostRepository:
    """What a pull asks of one host. `patient` says that there is no other host to turn to.

    Another host has `answer_timeout_s` to answer for a document, which every cache has at hand. A
    blob may have to be fetched first by a cache that serves it when it is whole.
    """

    def __init__(
        self,
        transport: Transport,
        session: Session,
        host: Host,
        progress: Progress,
        *,
        patient: bool,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.url = host.url
        self.patient = patient
        self._answer_timeout_s = 0.0 if patient else answer_timeout_s
        self._transport = transport
        self._session = session
        self._host = host
        self._origin = origin(host.url)
        self._progress = progress
        self._name = host.repository or session.reference.repository

    def budget(self) -> Budget:
        """A budget of attempts for one request."""
        return Budget(self._transport.clock)

    @contextlib.asynccontextmanager
    async def get(
        self, path: str, headers: Mapping[str, str], *, document: bool = False
    ) -> AsyncIterator[Answer]:
        """A successful answer for `path` of the repository, such as "manifests/latest".

        Raises NotFoundError, RegistryDeniedError, RegistryError.
        """
        request, renewed = self._request(path, headers, document=document), False
        for left in reversed(range(_ROUNDS)):
            with self._progress.receiving(self.url):
                sent = dict(self._session.authorizations)
                async with self._transport.open(request) as answer:
                    if answer.status < 300:
                        yield answer
                        return
                    refusal = await self._refusal(answer)
                    if answer.status != 401 or not left:
                        raise refusal.error()
                    at, challenges = answer.origin, answer.challenges
                if renewed and any(c.parameters.get("error") == _TOO_LITTLE for c in challenges):
                    raise self._wanting(at, refusal)
                # The connection is free again while a token is fetched.
                renewed |= await self._authorise(at, challenges, sent.get(at, ""), refusal)

    def place(self, link: str) -> str:
        """The path of the repository that a link in an answer leads to.

        The host's name in it is not looked at: behind a proxy it may be another. Raises
        CorruptError for a place outside.
        """
        base = f"{self.url}{self._host.api}/{self._name}/"
        try:
            target = urlsplit(urljoin(base, link))
        except ValueError:
            target = urlsplit("")
        above = urlsplit(base).path
        if not target.path.startswith(above):
            raise CorruptError(f"{self.url}: a list of {self._name} goes on outside of it")
        return target._replace(scheme="", netloc="", fragment="").geturl()[len(above) :]

    def _request(self, path: str, headers: Mapping[str, str], *, document: bool) -> Request:
        reference, host = self._session.reference, self._host
        url = f"{host.url}{host.api}/{self._name}/{path}"
        if host.stands_for(reference.registry):
            url += ("&" if "?" in path else "?") + urlencode({"ns": reference.registry})
        try:
            tls = host.tls()
        except (OSError, ValueError) as exc:
            raise RegistryError(
                f"the TLS files of {host.url} in hosts.toml cannot be used: {exc}", url=host.url
            ) from exc
        return Request(
            url=url,
            headers=headers,
            private=self._private,
            tls=tls,
            dial_timeout_s=host.dial_timeout_s,
            answer_timeout_s=self._answer_timeout_s if document else 0.0,
        )

    def _private(self, at: Origin) -> Mapping[str, str]:
        """Fields of one origin alone: hosts.toml's, and the authorization that it asked for."""
        fields = dict(self._host.header) if at == self._origin else {}
        if authorization := self._session.authorizations.get(at):
            fields = {k: v for k, v in fields.items() if k.lower() != "authorization"}
            fields["Authorization"] = authorization
        return fields

    async def _refusal(self, answer: Answer) -> Refusal:
        speaker = Speaker.REGISTRY if answer.origin == self._origin else Speaker.STRANGER
        return await answer.refusal(speaker, self._transport.clock.time())

    async def _authorise(
        self, at: Origin, challenges: list[Challenge], refused: str, refusal: Refusal
    ) -> bool:
        """Get what a 401 of `at` asks for; `refused` is what was sent before.

        False when another request of this pull has got it meanwhile. The registry's credentials
        are for its own origin. Where it redirects to, a pull without credentials asks for an
        anonymous token, as names that only redirect to a registry need it.
        """
        if self._session.authorizations.get(at, "") != refused:
            return False
        credentials = await self._session.credentials_of(self._host)
        if credentials is not None and at != self._origin:
            raise _denied(
                f"{self.url} redirects to {at}, which requires credentials of its own", refusal
            )
        if not challenges:
            raise _denied(f"{at} requires credentials but sends no challenge", refusal)
        new = await self._authorization(at, challenges, credentials)
        if not new or new == refused:
            raise self._wanting(at, refusal)
        self._session.authorizations[at] = new
        return True

    def _wanting(self, at: Origin, refusal: Refusal) -> RegistryDeniedError:
        """The error of a pull without the required rights."""
        name = self._session.reference.name
        if not self._session.credentials.get(self._host.url):
            text = f"{at} requires credentials for {name}; set imagePullSecrets, or check the name"
        else:
            text = f"{at} rejected the credentials for {name}"
        return _denied(text, refusal)

    async def _authorization(
        self, at: Origin, challenges: list[Challenge], credentials: Credentials | None
    ) -> str:
        """The Authorization for the best challenge: Bearer before Basic, wherever they stand."""
        schemes: dict[str, Challenge] = {}
        for challenge in challenges:
            schemes.setdefault(challenge.scheme, challenge)
        bearer = schemes.get("bearer")
        basic = "basic" in schemes and credentials is not None and bool(credentials.username)
        if bearer is not None and credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        if bearer is not None and (bearer.parameters.get("realm") or not basic):
            asked = question(bearer, at, self._name, credentials)
            like = self._request("", {}, document=True)
            token = await fetch_token(self._transport, asked, like, self._session.get_realms)
            return f"Bearer {token}"
        return credentials.basic if basic and credentials is not None else ""


def _denied(text: str, refusal: Refusal) -> RegistryDeniedError:
    return RegistryDeniedError(
        f"{text} ({refusal})",
        method=refusal.method,
        url=refusal.url,
        status=refusal.status,
        codes=refusal.details.codes,
    )
