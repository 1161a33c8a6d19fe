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

        Raises ExhaustedError naming the full network; nothing is assigned then.
        """

        def change(connection: sqlite3.Connection) -> tuple[str, ...]:
            if held := _held(connection, sandbox_id):
                return held
            taken = {row[0] for row in connection.execute("SELECT address FROM addresses")}
            chosen = tuple(_choose(connection, network, taken) for network in networks)
            connection.executemany(
                "INSERT INTO addresses (address, sandbox_id, position) VALUES (?, ?, ?)",
                [(address, sandbox_id, at) for at, address in enumerate(chosen)],
            )
            return chosen

        def then(addresses: tuple[str, ...]) -> None:
            self._owners[sandbox_id] = addresses

        return await self._db.write(change, then=then)

    async def release(self, sandbox_id: str) -> None:
        """Release the sandbox's addresses; no effect when it has none."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM addresses WHERE sandbox_id = ?", (sandbox_id,))

        await self._db.write(change, then=lambda _: self._forget(sandbox_id), frees=True)

    def _forget(self, sandbox_id: str) -> None:
        self._owners.pop(sandbox_id, None)


def _held(connection: sqlite3.Connection, sandbox_id: str) -> tuple[str, ...]:
    rows = connection.execute(
        "SELECT address FROM addresses WHERE sandbox_id = ? ORDER BY position", (sandbox_id,)
    )
    return tuple(row[0] for row in rows)


def _choose(connection: sqlite3.Connection, network: Network, taken: set[str]) -> str:
    """The next free address after the last one that this network assigned."""
    first = int(network.network_address) + 2  # +1 is the gateway
    last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
    count = last - first + 1
    setting = f"last-address {network}"
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (setting,)).fetchone()
    start = int(ip_address(row[0])) + 1 - first if row else 0
    for step in range(min(max(count, 0), len(taken) + 1)):
        number = first + (start + step) % count
        kind = type(network.network_address)
        address = str(kind(number))
        if address not in taken:
            connection.execute(
                "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (setting, address)
            )
            return address
    raise ExhaustedError(
        f"no free address in pod network {network} ({max(count, 0)} in total); remove pods or "
        "configure a larger network.pod_cidrs"
    )
