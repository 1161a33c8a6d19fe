# SPDX-License-Identifier: Apache-2.0
"""Token services (distribution's token and OAuth 2 documents), asked as containerd asks them.

With credentials a form is posted first; services that refuse it are asked by GET.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from criagent.base.errors import NotFoundError, RegistryError
from criagent.image.hosts.credentials import Credentials
from criagent.image.registry.challenge import Challenge
from criagent.image.registry.failure import Speaker, printable
from criagent.image.registry.transport import Answer, Request, Transport
from criagent.image.registry.urls import Origin, origin

_MAX_TOKEN = 1 << 20
_CLIENT = "criagent"
_NO_FORMS = {300, 301, 302, 303, 307, 308, 400, 401, 404, 405, 406, 411, 415, 501}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuestion:
    """What a Bearer challenge asks to be fetched, and with whose credentials."""

    realm: str
    service: str
    scopes: tuple[str, ...]
    credentials: Credentials | None

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The query of a GET; an empty service is none."""
        service = [("service", self.service)] if self.service else []
        return [*service, *(("scope", scope) for scope in self.scopes)]

    @property
    def form(self) -> dict[str, str] | None:
        """The form of a POST, None without credentials."""
        credentials = self.credentials
        if credentials is None:
            return None
        form = {"client_id": _CLIENT, "scope": " ".join(self.scopes)}
        if self.service:
            form["service"] = self.service
        if credentials.identity_token:
            return {
                **form,
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
            }
        if credentials.username:
            return {
                **form,
                "grant_type": "password",
                "username": credentials.username,
                "password": credentials.password,
            }
        return None


def question(
    challenge: Challenge, asker: Origin, repository: str, credentials: Credentials | None
) -> TokenQuestion:
    """The token request for a `challenge` of `asker`: its scope, or else to pull from `repository`.

    Raises RegistryError for a realm that is not a URL, or would take credentials off https.
    """
    realm = challenge.parameters.get("realm", "")
    shown = printable(realm, 200)
    try:
        scheme = origin(realm).scheme
    except ValueError as exc:
        raise RegistryError(f"{asker} names the token realm {shown!r}: {exc}") from None
    if (asker.scheme, scheme) == ("https", "http"):
        raise RegistryError(f"{asker} names the token realm {shown!r}, which is not https")
    scopes = tuple(challenge.parameters.get("scope", "").split())
    return TokenQuestion(
        realm=realm,
        service=challenge.parameters.get("service", ""),
        scopes=scopes or (f"repository:{repository}:pull",),
        credentials=credentials,
    )


async def fetch_token(
    transport: Transport, asked: TokenQuestion, like: Request, get_realms: set[str]
) -> str:
    """A Bearer token. `like` has TLS settings and time limits; `get_realms` learns who takes no
    form.

    Raises RegistryError, RegistryDeniedError, CorruptError.
    """
    if asked.form is not None and asked.realm not in get_realms:
        request = Request(
            url=asked.realm,
            headers={"Accept": "application/json"},
            form=asked.form,
            tls=like.tls,
            dial_timeout_s=like.dial_timeout_s,
            answer_timeout_s=like.answer_timeout_s,
        )
        async with transport.open(request) as answer:
            if answer.status not in _NO_FORMS:
                return await _token(transport, answer)
        get_realms.add(asked.realm)
    separator = "&" if urlsplit(asked.realm).query else "?"
    request = Request(
        url=f"{asked.realm}{separator}{urlencode(asked.parameters)}",
        headers={"Accept": "application/json"},
        private=lambda at: _basic(asked, at),
        tls=like.tls,
        dial_timeout_s=like.dial_timeout_s,
        answer_timeout_s=like.answer_timeout_s,
    )
    async with transport.open(request) as answer:
        return await _token(transport, answer)


def _basic(asked: TokenQuestion, at: Origin) -> Mapping[str, str]:
    """The credentials, for the realm's own origin."""
    credentials = asked.credentials
    if credentials is None or at != origin(asked.realm):
        return {}
    if credentials.identity_token and not credentials.password:
        credentials = Credentials(
            username=credentials.username, password=credentials.identity_token
        )
    return {"Authorization": credentials.basic} if credentials.password else {}


async def _token(transport: Transport, answer: Answer) -> str:
    if not 200 <= answer.status < 300:
        refusal = await answer.refusal(Speaker.TOKENS, transport.clock.time())
        error = refusal.error()
        if isinstance(error, NotFoundError):  # does not concern the image
            raise RegistryError(str(error), method="GET", url=refusal.url, status=404)
        raise error
    token = _in_document(await answer.document(_MAX_TOKEN))
    if not token or not token.isascii() or not token.isprintable():
        raise RegistryError(f"{answer.url} returned no token", url=answer.url)
    return token


def _in_document(content: bytes) -> str:
    """`access_token` or `token`, its name in any case, as Go's decoder takes it."""
    try:
        document: Any = json.JSONDecoder().raw_decode(content.decode().lstrip())[0]
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    fields = {name.lower(): value for name, value in document.items()}
    for name in ("access_token", "token"):
        if isinstance(value := fields.get(name), str) and value:
            return value
    return ""
