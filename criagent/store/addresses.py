# SPDX-License-Identifier: Apache-2.0
"""Pod addresses: the IPAM of the built-in network.

An address belongs to a sandbox from the commit that assigns it to the one that releases it.
Allocation is round-robin: an address that was just released is the last to be used again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from criagent.base.errors import ExhaustedError
from criagent.store.db import Database

Network = IPv4Network | IPv6Network


class NetworkFullError(ExhaustedError):
    """All addresses of a pod network are in use."""


class AddressStore:
    """Addresses by sandbox. The first host of each network is the gateway's and never assigned."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._owners: dict[str, tuple[str, ...]] = {}
        for address, owner in db.read(
            "SELECT address, sandbox_id FROM addresses ORDER BY sandbox_id, position"
        ):
            self._owners[owner] = (*self._owners.get(owner, ()), address)

    def of(self, sandbox_id: str) -> tuple[str, ...]:
        """The sandbox's addresses, in the order of its networks."""
        return self._owners.get(sandbox_id, ())

    def owners(self) -> dict[str, tuple[str, ...]]:
        """All addresses in use by sandbox id."""
        return dict(self._owners)

    async def allocate(self, sandbox_id: str, networks: Sequence[Network]) -> tuple[str, ...]:
        """One address of each network; a sandbox that has some gets the same again.

        Raises NetworkFullError naming the network; nothing is assigned then.
        """

        def change(connection: sqlite3.Connection) -> tuple[str, ...]:
            if held := _held(connection, sandbox_id):
                return held
            chosen = tuple(_choose(connection, network) for network in networks)
            connection.executemany(
                "INSERT INTO addresses (address, sandbox_id, position) VALUES (?, ?, ?)",
                [(address, sandbox_id, at) for at, address in enumerate(chosen)],
            )
            return chosen

        def then(addresses: tuple[str, ...]) -> None:
            self._owners[sandbox_id] = addresses

        return await self._db.write(change, then=then)

    async def release(self, *sandbox_ids: str) -> None:
        """Release the addresses of the sandboxes; no effect for one that has none."""

        def change(connection: sqlite3.Connection) -> None:
            rows = [(sandbox_id,) for sandbox_id in sandbox_ids]
            connection.executemany("DELETE FROM addresses WHERE sandbox_id = ?", rows)

        def then(_: None) -> None:
            for sandbox_id in sandbox_ids:
                self._owners.pop(sandbox_id, None)

        await self._db.write(change, then=then, frees=True)


def _held(connection: sqlite3.Connection, sandbox_id: str) -> tuple[str, ...]:
    rows = connection.execute(
        "SELECT address FROM addresses WHERE sandbox_id = ? ORDER BY position", (sandbox_id,)
    )
    return tuple(row[0] for row in rows)


def _is_taken(connection: sqlite3.Connection, address: str) -> bool:
    found = connection.execute("SELECT 1 FROM addresses WHERE address = ?", (address,))
    return found.fetchone() is not None


def _choose(connection: sqlite3.Connection, network: Network) -> str:
    """The next free address after the last one that this network assigned.

    It is the first one that is tried, unless the network is nearly full.
    """
    first = int(network.network_address) + 2  # +1 is the gateway
    last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
    count = last - first + 1
    setting = f"last-address {network}"
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (setting,)).fetchone()
    start = int(ip_address(row[0])) + 1 - first if row else 0
    (taken,) = connection.execute("SELECT COUNT(*) FROM addresses").fetchone()
    for step in range(min(max(count, 0), taken + 1)):
        number = first + (start + step) % count
        kind = type(network.network_address)
        address = str(kind(number))
        if not _is_taken(connection, address):
            connection.execute(
                "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (setting, address)
            )
            return address
    raise NetworkFullError(
        f"no free address in pod network {network} ({max(count, 0)} in total); remove pods or "
        "configure a larger network.pod_cidrs"
    )
