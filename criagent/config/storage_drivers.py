# SPDX-License-Identifier: Apache-2.0
"""Names of storage drivers in `storage.driver`."""

from __future__ import annotations

from criagent.config.hints import meant

AUTO = "auto"
DEFAULT = "overlay"
KNOWN = ("overlay", "native", "btrfs", "devmapper", "zfs", "erofs", "fuse-overlayfs")
# A writable layer is a snapshot of its image's: both are on one file system, or in one pool.
ONE_POOL = frozenset({"btrfs", "devmapper", "zfs"})
_ALIASES = {"overlay2": "overlay", "overlayfs": "overlay"}


def canonical(name: str) -> str:
    """The driver's own name for an alias that Docker or containerd uses."""
    return _ALIASES.get(name, name)


def of_handler(name: str) -> None:
    """Check the name of a handler's driver, "" = storage.driver. Raises ValueError."""
    if name == AUTO:
        raise ValueError("'auto' is for storage.driver; name a driver, or remove the key")
    if name:
        storage_driver(name)


def storage_driver(name: str) -> None:
    """Check the name of a driver. Raises ValueError."""
    if name == "aufs":
        raise ValueError(
            "aufs was never part of the Linux kernel, and distributions have dropped it; use its "
            "successor 'overlay', or 'native' where overlay cannot be mounted"
        )
    if canonical(name) not in (AUTO, *KNOWN):
        names = ", ".join(map(repr, (AUTO, *KNOWN)))
        raise ValueError(f"must be one of {names}, not {name[:80]!r}{meant(name, KNOWN)}")
