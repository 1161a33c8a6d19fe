# SPDX-License-Identifier: Apache-2.0
"""Keys of snapshots that are neither the chain ID of a layer nor the id of a container."""

from __future__ import annotations

import secrets

from criagent.model.image import Snapshot

_DAMAGED = "damaged:"


def damaged_key(snapshot: Snapshot) -> str:
    """The key of a layer that was replaced as damaged, for as long as containers use it."""
    return f"{_DAMAGED}{snapshot.number}:{snapshot.key}"


def is_writable(snapshot: Snapshot) -> bool:
    """Whether it is the writable layer of a container."""
    return not snapshot.committed and not snapshot.key.startswith("sha")


def damaged_origin(key: str) -> str:
    """The chain ID that such a layer had; "" for any other key."""
    return key.removeprefix(_DAMAGED).partition(":")[2] if key.startswith(_DAMAGED) else ""


def trial_key(chain_id: str) -> str:
    """A new key for a layer that is unpacked for a comparison alone.

    It begins like a chain ID, so that what a crash leaves of it is thrown away.
    """
    return f"{chain_id} trial {secrets.token_hex(8)}"
