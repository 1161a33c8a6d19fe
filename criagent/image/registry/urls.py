# SPDX-License-Identifier: Apache-2.0
"""URLs that registries name: their origin, the target of a redirect, their form in texts.

A signed URL is valid only as it was written, so nothing here decodes and re-encodes one.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes, urljoin, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443}
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
_SHOWN = 300  # characters of a URL in an error
_VISIBLE = bytes(range(0x21, 0x7F))


class Origin(NamedTuple):
    """The owner of credentials (RFC 6454): the same name on another port is another owner."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def origin(url: str) -> Origin:
    """The origin of an http or https URL. Raises ValueError for any other."""
    split = urlsplit(url)
    if split.scheme not in _PORTS:
        raise ValueError("expected http or https")
    if not split.hostname:
        raise ValueError("the host is missing")
    return Origin(split.scheme, split.hostname, split.port or _PORTS[split.scheme])


def redirect_target(url: str, location: str) -> str:
    """Where the Location of an answer to `url` leads, byte for byte as it was written.

    The fragment is left out and a blank becomes %20, since a request line can have neither.
    Raises ValueError for a location with control characters.
    """
    text = _as_sent(location)
    if _ABSOLUTE.match(text):
        return text
    base = urlsplit(url)
    if text.startswith("//"):
        return f"{base.scheme}:{text}"
    top = f"{base.scheme}://{base.netloc}"
    if text.startswith("/"):
        return top + text
    if not text or text.startswith("?"):
        return top + base.path + (text or (f"?{base.query}" if base.query else ""))
    path, mark, query = text.partition("?")
    return urljoin(top + base.path, path) + mark + query


def _as_sent(location: str) -> str:
    raw = location.strip(" \t").encode("utf-8", "surrogateescape").partition(b"#")[0]
    if _CONTROLS.search(raw):
        raise ValueError("it contains control characters")
    raw = raw.replace(b" ", b"%20")
    try:
        return raw.decode()
    except UnicodeDecodeError:  # Latin-1 cannot be put into a str that is sent as it was
        return quote_from_bytes(raw, safe=_VISIBLE)


def redacted(url: str) -> str:
    """`url` without user, password, query and fragment, cut, for texts that people read."""
    try:
        split = urlsplit(url)
        plain = urlunsplit((split.scheme, split.netloc.rpartition("@")[2], split.path, "", ""))
    except ValueError:
        plain = url.partition("?")[0].rpartition("@")[2]
    shown = "".join(c if c.isprintable() else "?" for c in plain)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
