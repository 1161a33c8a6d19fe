# SPDX-License-Identifier: Apache-2.0
"""A server's refusal as an error: its code and message reach the user, within limits.

Messages are taken from the registry and its token service. Of any other server, to which a redirect
or a foreign layer's URL led, only a code is shown: an image must not reveal what the node can
reach.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from criagent.base.errors import NotFoundError, RegistryDeniedError, RegistryError

MAX_TEXT = 512  # characters of a server's text
MAX_BODY = 64 << 10  # bytes of an error that are read
_MAX_CODES = 8
_MAX_CODE = 64
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_XML_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_TITLE = re.compile(r"<title[^>]*>([^<]{1,512})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Details:
    """A server's explanation of its refusal: codes, and a text of one line that includes them."""

    codes: tuple[str, ...] = ()
    text: str = ""


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """`text` on one line, without control, format and private characters, cut to `limit`."""
    text = text[: limit * 4]
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class Speaker(enum.Enum):
    """Whose refusal it is, and so how much of it is repeated."""

    REGISTRY = "registry"  # everything: documents, plain text, the title of a page
    TOKENS = "token service"  # documents: the registry names its URL
    STRANGER = "stranger"  # the code of a storage service


def details_of(body: bytes, speaker: Speaker) -> Details:
    """What the body of an error says: the distribution specification's errors, OAuth's, S3's."""
    text = body.decode("utf-8", "replace")
    if speaker is Speaker.STRANGER:
        code = _XML_CODE.search(text)
        return Details((code[1],), code[1]) if code else Details()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        entries = list(_entries(document))[:_MAX_CODES]
        codes = tuple(printable(code, _MAX_CODE) for code, _ in entries if code)
        said = "; ".join(": ".join(part for part in entry if part) for entry in entries)
        return Details(codes, printable(said))
    if code := _XML_CODE.search(text):
        return Details((code[1],), code[1])
    if speaker is not Speaker.REGISTRY or document is not None:
        return Details()
    if text.lstrip().startswith("<"):
        title = _TITLE.search(text)
        return Details((), printable(title[1]) if title else "")
    return Details((), printable(text))


def _entries(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of code and message, either of which may be empty."""
    errors = document.get("errors")
    for entry in errors if isinstance(errors, list) else [document.get("error"), document]:
        if not isinstance(entry, dict):
            continue
        code = _text(entry.get("code"))
        message = _text(entry.get("message"))
        if entry is document:  # OAuth (RFC 6749, section 5.2) and Docker Hub
            code = code or _text(entry.get("error"))
            message = message or _text(entry.get("error_description"))
            message = message or _text(entry.get("details"))
        if code or message:
            yield code, message


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An unsuccessful answer; `url` is redacted."""

    method: str
    url: str
    status: int
    reason: str
    details: Details
    retry_after_s: float | None = None

    def __str__(self) -> str:
        said = f": {self.details.text}" if self.details.text else ""
        later = self.retry_after_s
        again = f" (retry after {later:.0f} s)" if later else ""
        reason = printable(self.reason, _MAX_CODE)
        status = f"{self.status} {reason}" if reason else str(self.status)
        return f"{self.method} {self.url}: {status}{said}{again}"

    def error(self) -> NotFoundError | RegistryError:
        """NotFoundError for 404, RegistryDeniedError for 401 and 403, else RegistryError."""
        if self.status == 404:
            return NotFoundError(str(self))
        kind = RegistryDeniedError if self.status in {401, 403} else RegistryError
        return kind(
            str(self),
            method=self.method,
            url=self.url,
            status=self.status,
            codes=self.details.codes,
            transient=self.status in _TRANSIENT,
            retry_after_s=self.retry_after_s,
        )
