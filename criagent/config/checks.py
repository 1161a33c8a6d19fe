# SPDX-License-Identifier: Apache-2.0
"""Checks of single values. Each raises ValueError with what is wrong, and what would be right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from criagent.base import faults

_LONGEST_RETENTION_S = 23 * 3600  # with the time between two collections, within a day
_FEWEST_ADDRESSES = 4  # network, gateway, a pod, broadcast
_LONGEST_SOCKET_PATH = 107  # sun_path of man 7 unix, without its closing zero
_LEAST_MTU = 1280  # of IPv6 (RFC 8200 section 5)


def above_zero(number: float) -> None:
    """A finite number above 0."""
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"must be greater than 0, not {number}")


def from_zero(number: float) -> None:
    """A finite number, 0 or above."""
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"must be 0 or greater, not {number}")


def percent(number: int) -> None:
    """From 1 to 100."""
    if not 1 <= number <= 100:
        raise ValueError(f"must be 1 to 100, not {number}")


def dm_name(name: str) -> None:
    """A name of device-mapper that leaves room for the numbers of volumes, or nothing."""
    if name and not re.fullmatch(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,99}", name):
        raise ValueError(f"must be letters, digits and . _ + -, at most 100, not {name[:120]!r}")


def zfs_dataset(name: str) -> None:
    """A pool or a dataset (man 7 zfsconcepts), or nothing."""
    if name and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)*", name):
        raise ValueError(f"must be a dataset such as tank/criagent, not {name[:120]!r}")


def retention(seconds: float) -> None:
    """So long that it ends within a day."""
    if not 0 <= seconds <= _LONGEST_RETENTION_S:
        raise ValueError(f"must be 0 to {_LONGEST_RETENTION_S} seconds, not {seconds}")


def mtu(size: int) -> None:
    """0 for that of the default route, or a size."""
    if size and not _LEAST_MTU <= size <= 65535:
        raise ValueError(f"must be 0 or from {_LEAST_MTU} to 65535, not {size}")


def port(number: int) -> None:
    """A TCP port, or 0 for a free one."""
    if not 0 <= number < 65536:
        raise ValueError(f"must be 0 to 65535, not {number}")


def cidrs(networks: Sequence[str]) -> None:
    """The pods' networks: one, or one of each family, with room for a pod."""
    for cidr in networks:
        try:
            network = ip_network(cidr)
        except ValueError as exc:
            raise ValueError(f"{cidr[:80]!r} is not a network: {str(exc)[:200]}") from None
        if network.num_addresses < _FEWEST_ADDRESSES:
            raise ValueError(f"{cidr!r} has no addresses for pods beside its gateway")
    versions = [ip_network(cidr).version for cidr in networks]
    if not versions or len(set(versions)) < len(versions):
        raise ValueError("must be one network, or one of IPv4 and one of IPv6")


def interface_name(name: str) -> None:
    """A name that an interface of the agent can have."""
    # "all" and "default" are directories of their own beside the interfaces' sysctls
    taken = name in {".", "..", "all", "default", "lo"}
    if taken or not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name):
        raise ValueError(f"{name!r} is not a free interface name of at most 15 characters")


def listen_address(address: str) -> None:
    """An IP address."""
    try:
        ip_address(address)
    except ValueError:
        raise ValueError(f"{address!r} is not an IP address") from None


def url_host(host: str) -> None:
    """A host name, an IP address, or nothing."""
    if not host or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        return
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(f"{host!r} is neither a host name nor an IP address") from None


def optional_address(address: str) -> None:
    """An IP address or localhost with its port, or nothing."""
    if not address:
        return
    host, colon, digits = address.rpartition(":")
    try:
        known = host == "localhost" or bool(ip_address(host.strip("[]")))
    except ValueError:
        known = False
    number = int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else 0
    if not colon or not known or not 0 < number < 65536:
        example = '"127.0.0.1:9880"'
        raise ValueError(f"{address!r} is not an IP address with a port, such as {example}")


def is_loopback(address: str) -> bool:
    """Whether only the node itself reaches an address that `optional_address` accepts."""
    host = address.rpartition(":")[0]
    return host in {"", "localhost"} or ip_address(host.strip("[]")).is_loopback


def endpoint(url: str) -> None:
    """A URL of HTTP, or nothing."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError('must be a URL such as "http://127.0.0.1:4318/v1/traces"')


def socket_path(path: Path) -> None:
    """A path that fits into the address of a Unix socket."""
    size = len(str(path).encode())
    if size > _LONGEST_SOCKET_PATH:
        limit = _LONGEST_SOCKET_PATH
        raise ValueError(f"is {size} bytes long; a socket's path has room for {limit}")


def optional_path(path: str) -> None:
    """An absolute path, or nothing."""
    if path and (not path.startswith("/") or "\0" in path):
        raise ValueError(f"must be an absolute path, not {path!r}")


def optional_socket_path(path: str) -> None:
    """The absolute path of a socket, or nothing."""
    optional_path(path)
    socket_path(Path(path))


def stores(paths: Sequence[Path]) -> None:
    """Absolute directories, each once."""
    for path in paths:
        if not path.is_absolute():
            raise ValueError(f"must have absolute paths, not {str(path)!r}")
        if paths.count(path) > 1:
            raise ValueError(f"has {str(path)!r} twice")


def duration(text: str) -> None:
    """A length of time above 0, as Go writes it."""
    if seconds(text) <= 0:
        raise ValueError(f"must be longer than 0, not {text!r}")


def seconds(text: str) -> float:
    """A length of time such as "2s", "500ms" or "1m30s". Raises ValueError for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
    if not re.fullmatch(rf"(?:{number}(?:ms|s|m|h))+", text):
        raise ValueError(f'{text[:80]!r} is not a duration such as "2s" or "500ms"')
    parts = re.findall(rf"({number})(ms|s|m|h)", text)
    return sum(float(amount) * units[unit] for amount, unit in parts)


def fault_points(entries: Sequence[str]) -> None:
    """Points of `criagent.base.faults` that fail."""
    for entry in entries:
        faults.failure(entry)
