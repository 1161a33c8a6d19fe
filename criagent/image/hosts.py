"""hosts.toml: which servers stand for a registry (containerd's format, docs/hosts.md there).

Read anew for each pull. A directory is named after the registry, `host:port` or `host_port_`, else
`_default`. Docker's certs.d layout (ca.crt, client.cert, client.key) is read as well.
"""

from __future__ import annotations

import ipaddress
import ssl
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from criagent.errors import InvalidRequestError

ALL = frozenset({"pull", "resolve", "push"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server to ask, with how to reach it. `url` ends before "/v2".

    Made anew for each pull, which loads the TLS settings once and so shares connections.
    """

    url: str
    mirror: bool = False
    capabilities: frozenset[str] = ALL
    skip_verify: bool = False
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    header: tuple[tuple[str, str], ...] = ()
    api: str = "/v2"
    _loaded: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    @property
    def authority(self) -> str:
        """host[:port], what credentials belong to."""
        return urlsplit(self.url).netloc

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

        Raises InvalidRequestError that names the file for a hosts.toml that cannot be read.
        """
        for base in self._directories:
            for name in (registry, _escaped(registry), "_default"):
                folder = base / name
                if (folder / "hosts.toml").is_file():
                    return _from_toml(folder, registry)
                if folder.is_dir() and name != "_default" and any(folder.glob("*.crt")):
                    return [_from_docker(folder, registry)]
        return [Host(url=default_url(registry))]


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


def _escaped(registry: str) -> str:
    host, colon, port = registry.rpartition(":")
    return f"{host}_{port}_" if colon else registry


def _from_docker(folder: Path, registry: str) -> Host:
    pairs = [(cert, cert.with_suffix(".key")) for cert in sorted(folder.glob("*.cert"))]
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
    url = (url if "://" in url else f"https://{url}").rstrip("/")
    override = bool(entry.get("override_path", False))
    api = "" if override or urlsplit(url).path.endswith("/v2") else "/v2"
    capabilities = entry.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, list):
        raise ValueError("capabilities: want a list such as ['pull', 'resolve']")
    headers = [
        (name, str(value))
        for name, values in entry.get("header", {}).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return Host(
        url=url,
        api=api,
        mirror=mirror,
        capabilities=frozenset(capabilities) if capabilities is not None else ALL,
        skip_verify=bool(entry.get("skip_verify", False)),
        ca=tuple(folder / str(path) for path in _many(entry.get("ca"))),
        client=tuple(_pair(folder, item) for item in _many(entry.get("client"))),
        header=tuple(headers),
    )


def _many(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _pair(folder: Path, item: object) -> tuple[Path, Path | None]:
    if isinstance(item, list):
        key = folder / str(item[1]) if len(item) > 1 and item[1] else None
        return folder / str(item[0]), key
    return folder / str(item), None
