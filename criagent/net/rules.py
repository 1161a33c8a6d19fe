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
    """What the tables are about; `pods` are networks and single addresses of pods."""

    bridge: str
    pods: Sequence[str]
    forwards: Sequence[hostport.Forward]
    ports: Sequence[antispoof.Port]


def replacement(contents: Contents, *, anti_spoofing: bool) -> str:
    """Commands that put `contents` in the place of whatever is in the first table, or in both."""
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
    """Commands that put the second table there anew, without ports."""
    return clearance(antispoof.TABLE) + _ANTISPOOF.read_text()


def clearance(*tables: str) -> str:
    """Commands that delete `tables`, be they there or not."""
    return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)


def present(listing: str) -> list[str]:
    """Those of TABLES that `nft list tables` lists."""
    lines = {line.removeprefix("table ") for line in listing.splitlines()}
    return [table for table in TABLES if table in lines]
