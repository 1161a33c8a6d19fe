# SPDX-License-Identifier: Apache-2.0
"""The proxy of a registry request: the configuration's, else the environment's.

NO_PROXY entries are host names (including all below them), addresses, networks or `*`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Proxy URLs by scheme and the hosts that need none."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""

    def for_url(self, url: str) -> str | None:
        """The proxy for `url`, or None for a direct connection."""
        split = urlsplit(url)
        host = split.hostname or ""
        proxy = self.https if split.scheme == "https" else self.http
        if not proxy or self._direct(host):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"  # as curl and Go read it

    def _direct(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        for entry in self.no_proxy.replace(" ", ",").split(","):
            if not entry:
                continue
            if entry == "*" or _matches(entry.lower(), host.lower(), address):
                return True
        return False


def _matches(
    entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> bool:
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name = entry.partition(":")[0].removeprefix("*").removeprefix(".")
    return host == name or host.endswith(f".{name}")


def from_environment(environment: Mapping[str, str], configured: ProxySettings) -> ProxySettings:
    """`configured`, its gaps filled from HTTP_PROXY, HTTPS_PROXY and NO_PROXY of either case."""

    def value(name: str) -> str:
        return environment.get(name) or environment.get(name.lower()) or ""

    return ProxySettings(
        http=configured.http or value("HTTP_PROXY"),
        https=configured.https or value("HTTPS_PROXY"),
        no_proxy=configured.no_proxy or value("NO_PROXY"),
    )
