# SPDX-License-Identifier: Apache-2.0
"""Takes secrets out of texts that leave the node.

Two layers: every secret that this node's files hold is removed wherever it stands, and so is
whatever has the form of one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

REMOVED = "[removed]"
_SHORTEST = 4  # a shorter text would be removed from half of all words
_MOST = 1 << 20
# Keys of hosts.toml whose values may be shown; all others may be secrets, "header" is.
_HOSTS_SHOWN = frozenset(
    {"server", "host", "capabilities", "skip_verify", "ca", "client", "override_path"}
    | {"dial_timeout"}
)
_AUTH_KEYS = ("auth", "password", "identitytoken", "registrytoken")
_FORMS = (
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
    ),
    re.compile(r"(?<=://)[^/@\s\"'<>]+(?=@)"),
    re.compile(
        r"(?<=\b[Bb]earer )[\w.~+/=-]{4,}|(?<=\b[Bb]asic )(?=[a-z+/-]*[A-Z0-9=])[\w+/=-]{4,}"
    ),
    re.compile(
        r"(?i)(?<![\w-])[\w-]*(?:passw(?:or)?d|secret|token|authorization|api_?key|credential)s?"
        r"[\\\"']*\s*[=:]\s*(?P<value>\\\"[^\"\n]*\"|\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;}]+)"
    ),
)


class Cleaner:
    """Knows the secrets of a node; `clean` removes them and their like."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {
            form
            for secret in secrets
            if len(secret) >= _SHORTEST
            for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])
        }
        longest_first = sorted(forms, key=lambda form: -len(form))
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def clean(self, text: str) -> str:
        """`text` with a mark for each secret."""
        text = self._known.sub(REMOVED, text)
        for form in _FORMS:
            text = form.sub(_removed, text)
        return text


def _removed(found: re.Match[str]) -> str:
    if "value" not in found.re.groupindex:
        return REMOVED
    value = found["value"]
    quoted = value[:1] if value[:1] in {'"', "'"} else ""
    start = found[0][: found.start("value") - found.start()]
    return f"{start}{quoted}{REMOVED}{quoted}"


def of_docker(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Docker's config.json with the names of its keys alone, and the secrets that it has."""
    document = json.loads(_read(path))
    secrets: list[str] = []
    auths = document.get("auths", {})
    shown: dict[str, Any] = {"keys": sorted(document), "auths": {}}
    for server, entry in auths.items() if isinstance(auths, dict) else ():
        shown["auths"][server] = sorted(entry) if isinstance(entry, dict) else []
        secrets += _values(entry)
        for key in _AUTH_KEYS:
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                secrets += _decoded(entry[key]) if key == "auth" else []
    for key, value in document.items():
        if key not in {"auths", "credHelpers", "credsStore"}:
            secrets += _values(value)
    shown |= {key: document[key] for key in ("credHelpers", "credsStore") if key in document}
    return shown, secrets


def of_hosts_toml(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A hosts.toml without values that may be secrets, and those values."""
    document = tomllib.loads(_read(path))
    secrets: list[str] = []
    return _shown_hosts(document, secrets), secrets


def of_url(url: str) -> list[str]:
    """The user and the password in a URL."""
    try:
        split = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return []
    return [part for part in (split.password, split.username) if part]


def _shown_hosts(table: dict[str, Any], secrets: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in table.items():
        if key == "host" and isinstance(value, dict):
            for url in value:
                secrets += of_url(url)
            shown[key] = {
                url: _shown_hosts(one, secrets) if isinstance(one, dict) else REMOVED
                for url, one in value.items()
            }
        elif key in _HOSTS_SHOWN:
            shown[key] = value
            secrets += of_url(value) if isinstance(value, str) and key == "server" else []
        else:
            shown[key] = sorted(value) if isinstance(value, dict) else REMOVED
            secrets += _values(value)
    return shown


def _values(value: Any) -> list[str]:
    """Every text in a document, without the names of its keys."""
    return list(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        for scheme in ("Basic ", "Bearer "):
            if value.startswith(scheme):
                yield value.removeprefix(scheme)
                yield from _decoded(value.removeprefix(scheme))
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _decoded(text: str) -> list[str]:
    """Both halves of base64 of user:password, and the whole; the user alone is no secret."""
    try:
        plain = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return []
    _, colon, password = plain.partition(":")
    return [plain, password] if colon else []


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST).decode()
