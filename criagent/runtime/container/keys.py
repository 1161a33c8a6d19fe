"""Keys of the owners that start and end containers."""

from __future__ import annotations


def start_key(container_id: str) -> str:
    """The key of the owner that starts the container."""
    return f"start:{container_id}"
