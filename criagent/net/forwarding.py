# SPDX-License-Identifier: Apache-2.0
"""Sysctls of the node's network namespace that the built-in network needs.

Only forwarding itself affects more than the bridge, and other links keep their settings.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_IPV6 = Path("/proc/sys/net/ipv6/conf")


def forward_ipv4() -> None:
    """Let the node forward IPv4."""
    _write(Path("/proc/sys/net/ipv4/ip_forward"), "1")


def forward_ipv6(bridge: str) -> None:
    """Let the node forward IPv6 without changing links other than `bridge`.

    The kernel forwards by `all` alone. But it also makes every link a router's, which is deaf to
    router advertisements, and drops the routes that it learned from them, unless accept_ra is 2 at
    that moment (ndisc_router_discovery and rt6_purge_dflt_routers of Linux). So accept_ra is 2 for
    that moment, and afterwards all links, including future ones, are a host's again.
    """
    if _read(_IPV6 / "all/forwarding") != "0":
        return
    hosts = [
        conf
        for conf in _IPV6.iterdir()
        if conf.name not in {"all", bridge} and _read(conf / "forwarding") == "0"
    ]
    listening = [conf for conf in hosts if _read(conf / "accept_ra") == "1"]
    listening = [conf for conf in listening if conf.name != "default"]
    try:
        for conf in listening:
            _write(conf / "accept_ra", "2")
        _write(_IPV6 / "all/forwarding", "1")
    finally:
        for conf in hosts:
            _write(conf / "forwarding", "0")
        for conf in listening:
            _write(conf / "accept_ra", "1")


def set_up_bridge(bridge: str, *, ipv6: bool) -> None:
    """Allow loopback addresses for hostPorts, and ignore route announcements of pods."""
    ipv4_conf, ipv6_conf = Path("/proc/sys/net/ipv4/conf") / bridge, _IPV6 / bridge
    _write(ipv4_conf / "route_localnet", "1")
    _write(ipv4_conf / "send_redirects", "0")
    _write(ipv4_conf / "accept_redirects", "0")
    _write(ipv6_conf / "accept_ra", "0")
    _write(ipv6_conf / "accept_redirects", "0")
    if ipv6:
        _write(ipv6_conf / "accept_dad", "0")


def _read(path: Path) -> str:
    """The value, or "" if the link is gone or the kernel lacks the protocol."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, value: str) -> None:
    """Write the value if the file exists and holds another one. Raises OSError."""
    if _read(path) not in {"", value}:
        with contextlib.suppress(FileNotFoundError):
            path.write_text(value)
