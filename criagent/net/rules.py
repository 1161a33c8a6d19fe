# SPDX-License-Identifier: Apache-2.0
"""The text of the agent's nftables tables, whole: two files beside this one, and their elements.

Pure but for reading those files. `inet criagent` holds masquerade and hostPorts, `bridge criagent`
what keeps pods from using addresses of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from criagent.net import antispoof, hostport

NAME = hostport.NAME
TABLES = (hostport.TABLE, antispoof.TABLE)

_HOSTPORTS = Path(__file__).with_name("hostports.nft")
_ANTISPOOF = Path(__file__).with_name("antispoof.nft")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The contents of the tables; `pods` are networks and single addresses of pods."""

    bridge: str
    pods: Sequence[str]
    forwards: Sequence[hostport.Forward]
    ports: Sequence[antispoof.Port]


def replacement(contents: Contents, *, anti_spoofing: bool) -> str:
    """Commands that replace the first table, or both, by `contents`."""
    parts = [clearance(hostport.TABLE)]
    parts.append(f'redefine pod_bridge = "{contents.bridge}"\n')
    parts.append(_HOSTPORTS.read_text())
    for version in (4, 6):
        sources = [one for one in contents.pods if (":" in one) == (version == 6)]
        if sources:
            name = f"networks{version}"
            parts.append(f"add element {hostport.TABLE} {name} {{ {', '.join(sources)} }}\n")
    parts.append(hostport.add_commands(contents.forwards))
    if anti_spoofing:
        parts.append(antispoof_text())
        parts.append(antispoof.add_commands(contents.ports))
    return "".join(parts)


def antispoof_text() -> str:
    """Commands that create the second table again, without ports."""
    return clearance(antispoof.TABLE) + _ANTISPOOF.read_text()


def clearance(*tables: str) -> str:
    """Commands that delete `tables`, whether they exist or not."""
    return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)


def present(listing: str) -> list[str]:
    """Names of TABLES that are in the output of `nft list tables`."""
    lines = {line.removeprefix("table ") for line in listing.splitlines()}
    return [table for table in TABLES if table in lines]
