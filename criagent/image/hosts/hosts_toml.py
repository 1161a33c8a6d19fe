# SPDX-License-Identifier: Apache-2.0
"""hosts.toml: which servers stand for a registry (containerd's format, docs/hosts.md there).

Read again for each pull. A directory is named after the registry, `host_port_` or `host:port`, else
`_default`; the first that exists counts. Without a hosts.toml in it Docker's certs.d layout
(ca.crt, client.cert, client.key) is read.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import ssl
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from criagent.base.errors import InvalidRequestError
from criagent.image.hosts.credentials import same_registry

ALL = frozenset({"pull", "resolve", "push"})
_KNOWN = ALL | {"referrers"}
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"\+?(?:{_PART.pattern})+|0", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server to ask, with how to reach it. `url` ends before "/v2".

    Created again for each pull, which loads the TLS settings once and so shares connections.
    """

    url: str
    mirror: bool = False
    capabilities: frozenset[str] = ALL
    skip_verify: bool = False
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    header: tuple[tuple[str, str], ...] = ()
    api: str = "/v2"
    dial_timeout_s: float = 30.0  # 0 for none
    repository: str = ""  # its own name for the repository, "" = that of the reference
    fallback_for: str = ""  # URL of a host: asked only when that one has not answered
    _loaded: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    @property
    def authority(self) -> str:
        """host[:port], the owner of credentials."""
        return urlsplit(self.url).netloc

    def stands_for(self, registry: str) -> bool:
        """Whether it is another registry, to which requests have to name `registry`.

        One with its own name for the repository knows of no other registry.
        """
        return not self.repository and not same_registry(self.authority, registry)

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings, None for plain HTTP. Raises OSError for files that cannot be used."""
        if not self.url.startswith("https:"):
            return None
        if self._loaded:
            return self._loaded[0]
        context = ssl.create_default_context()
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for file in self.ca:
            context.load_verify_locations(file)
        for certificate, key in self.client:
            context.load_cert_chain(certificate, key)
        self._loaded.append(context)
        return context


class HostsDirectory:
    """The configured directories, the first that knows a registry wins."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(directories)

    def hosts(self, registry: str) -> list[Host]:
        """Servers for `registry` in the order to try; the registry itself comes last.

        Raises InvalidRequestError that names the file for an invalid hosts.toml.
        """
        for base in self._directories:
            for name in (_escaped(registry), registry, "_default"):
                folder = base / name
                if _has_text(folder / "hosts.toml"):
                    return _from_toml(folder, registry)
                if folder.is_dir():
                    return [_from_docker(folder, registry)]
        return [Host(url=default_url(registry))]

    def configured(self) -> list[str]:
        """The registries, or "_default", that have a directory of their own, sorted."""
        names = {
            folder.name
            for base in self._directories
            if base.is_dir()
            for folder in base.iterdir()
            if folder.is_dir()
        }
        return sorted({_unescaped(name) for name in names})

    def tls_files(self, registry: str) -> Host:
        """A host with the TLS files of Docker's layout for `registry`, if there are any.

        Directories with a hosts.toml are not read.
        """
        for base in self._directories:
            for name in (_escaped(registry), registry):
                folder = base / name
                if folder.is_dir() and not _has_text(folder / "hosts.toml"):
                    return _from_docker(folder, registry)
        return Host(url=default_url(registry))


def _has_text(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def default_url(registry: str) -> str:
    """The registry's own server: https, but plain http on loopback."""
    if registry == "docker.io":
        return "https://registry-1.docker.io"
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return f"{'http' if loopback else 'https'}://{registry}"


def _unescaped(name: str) -> str:
    host, escaped, port = name.removesuffix("_").rpartition("_")
    return f"{host}:{port}" if escaped and name.endswith("_") and port.isdecimal() else name


def _escaped(registry: str) -> str:
    host, colon, port = registry.rpartition(":")
    return f"{host}_{port}_" if colon else registry


def _from_docker(folder: Path, registry: str) -> Host:
    pairs = []
    for certificate in sorted(folder.glob("*.cert")):
        key = certificate.with_suffix(".key")  # without one the certificate's file has it too
        pairs.append((certificate, key if key.exists() else None))
    return Host(
        url=default_url(registry), ca=tuple(sorted(folder.glob("*.crt"))), client=tuple(pairs)
    )


def _from_toml(folder: Path, registry: str) -> list[Host]:
    file = folder / "hosts.toml"
    try:
        document = tomllib.loads(file.read_text())
        mirrors = [
            _host(url, entry, folder, mirror=True)
            for url, entry in document.get("host", {}).items()
        ]
        server = str(document.get("server") or default_url(registry))
        top = {k: v for k, v in document.items() if k not in {"host", "server"}}
        return [*mirrors, _host(server, top, folder, mirror=False)]
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as exc:
        raise InvalidRequestError(f"{file}: {exc}") from exc


def _host(url: str, entry: dict[str, Any], folder: Path, *, mirror: bool) -> Host:
    split = urlsplit(url if "://" in url else f"https://{url}")
    if split.scheme not in {"http", "https"} or not split.hostname or split.port == 0:
        raise ValueError(f"{url[:200]!r}: expected http:// or https:// and a host")
    path = posixpath.normpath(f"/{split.path}").lstrip("/")
    api = "" if _flag(entry, "override_path") or f"/{path}".endswith("/v2") else "/v2"
    host = split.netloc.rpartition("@")[2]
    return Host(
        url=f"{split.scheme}://{host}/{path}".rstrip("/"),
        api=api,
        mirror=mirror,
        capabilities=_capabilities(entry.get("capabilities")),
        skip_verify=_flag(entry, "skip_verify"),
        ca=tuple(folder / str(path) for path in _many(entry.get("ca"))),
        client=tuple(_pair(folder, item) for item in _many(entry.get("client"))),
        header=tuple(_headers(entry.get("header", {}))),
        dial_timeout_s=_duration_s(entry.get("dial_timeout", "30s")),
    )


def _flag(entry: dict[str, Any], key: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise TypeError(f"{key}: expected true or false")
    return value


def _capabilities(value: object) -> frozenset[str]:
    """Capabilities of a host; an empty list means all."""
    if value is not None and not isinstance(value, list):
        raise ValueError("capabilities: expected a list such as ['pull', 'resolve']")
    names = frozenset(name.lower() for name in value or ())
    if unknown := names - _KNOWN:
        raise ValueError(
            f"capabilities: {sorted(unknown)} are unknown; supported are {sorted(_KNOWN)}"
        )
    return names or ALL


def _headers(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields; of several values of one name RFC 9110 (5.2) makes one."""
    for name, values in table.items():
        value = ", ".join(str(one) for one in (values if isinstance(values, list) else [values]))
        if not name.isascii() or not f"{name}{value}".isprintable() or {" ", ":"} & set(name):
            raise ValueError(f"header {name[:100]!r}: expected a field name and printable values")
        yield name, value


def _duration_s(text: object) -> float:
    """Seconds of a duration in Go's form, such as "1s", "500ms" or "1m30s"; 0 for no limit."""
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise ValueError(f"dial_timeout: {str(text)[:50]!r} is not a duration such as '5s'")
    return sum(float(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))


def _many(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _pair(folder: Path, item: object) -> tuple[Path, Path | None]:
    if isinstance(item, list):
        if len(item) != 2:
            raise ValueError("client: expected pairs of a certificate and its key")
        return folder / str(item[0]), folder / str(item[1]) if item[1] else None
    return folder / str(item), None
