# SPDX-License-Identifier: Apache-2.0
"""The rest of a reset: what the agent has on the node when its pods and layers are gone.

Rules, the bridge, the parent cgroup of pods, mounts, and the directories with all their contents.
Synchronous; nothing here needs the database.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.config.sections import Config
from criagent.image.snapshots.containers_root import ID_FILE
from criagent.image.snapshots.drivers.devmapper.pool import pool_name
from criagent.kernel import cgroupfs, devicemapper, mount, netlink
from criagent.kernel.nftables import Nftables
from criagent.kernel.trees import remove_tree
from criagent.net import rules
from criagent.net.bridge import PORT_PREFIX
from criagent.runtime.node.cgroup_names import DEFAULT_PARENT

Tell = Callable[[str], None]


def present(config: Config) -> Iterator[str]:
    """What `clear` would remove, a line each."""
    if netlink.index_of(config.network.bridge) is not None:
        yield f"link {config.network.bridge}"
    try:
        with contextlib.closing(Nftables()) as nft:
            for table in rules.present(nft.run("list tables")):
                yield f"nftables table {table}"
    except AgentError as exc:
        yield f"nftables cannot be read: {exc}"
    if cgroupfs.directory(DEFAULT_PARENT).exists():
        yield f"cgroup {DEFAULT_PARENT}"
    for directory in _directories(config):
        yield f"directory {directory}"


def staying(config: Config) -> Iterator[str]:
    """What a reset leaves to the operator, and how it is removed."""
    if dataset := config.storage.zfs.dataset:
        yield f"the ZFS dataset stays: `zfs destroy -r {dataset}`"
    pool = config.storage.devmapper.pool or pool_name(config.storage.root / "snapshots")
    with contextlib.suppress(OSError):
        if devicemapper.find(pool) is not None:
            yield f"the thin pool {pool} stays: `dmsetup remove {pool}`, then detach its devices"


def clear(config: Config, tell: Tell) -> list[str]:
    """Remove it; returns what could not be removed. The root directory's lock is held."""
    problems = []
    for remove in (_rules, _bridge, _cgroup, _run_dir, _containers_root, _root):
        try:
            if done := remove(config):
                tell(f"{done} removed")
        except (AgentError, OSError) as exc:
            problems.append(f"not removed: {exc}; run `criagent reset` again")
    return problems


def _directories(config: Config) -> Iterator[Path]:
    storage = config.storage
    places = [storage.root, storage.run_dir]
    if storage.containers_root:
        places.append(Path(storage.containers_root))
    return (place for place in places if place.exists())


def _rules(config: Config) -> str:
    del config
    with contextlib.closing(Nftables()) as nft:
        there = rules.present(nft.run("list tables"))
        nft.run(rules.clearance(*there))
    return "nftables tables " + ", ".join(there) if there else ""


def _bridge(config: Config) -> str:
    index = netlink.index_of(config.network.bridge)
    if index is None:
        return ""
    with netlink.RouteSocket() as routes:
        # Links of pods that have just ended, which the kernel is about to remove.
        ports = Path(f"/sys/class/net/{config.network.bridge}/brif")
        for port in ports.iterdir() if ports.exists() else ():
            of_pod = netlink.index_of(port.name) if port.name.startswith(PORT_PREFIX) else None
            if of_pod is not None:
                routes.send([netlink.delete_link(of_pod)], gone_ok=True)
        routes.send([netlink.delete_link(index)])
    return f"link {config.network.bridge}"


def _cgroup(config: Config) -> str:
    """The parent of pods that named none. Its children were removed with their containers."""
    del config
    if not cgroupfs.directory(DEFAULT_PARENT).exists():
        return ""
    if not cgroupfs.remove(DEFAULT_PARENT):
        raise AgentError(f"cgroup {DEFAULT_PARENT} has processes")
    return f"cgroup {DEFAULT_PARENT}"


def _run_dir(config: Config) -> str:
    run_dir, socket = config.storage.run_dir, config.storage.socket
    if run_dir not in socket.parents:
        socket.unlink(missing_ok=True)
    return _delete(run_dir)


def _containers_root(config: Config) -> str:
    place = Path(config.storage.containers_root or "/nonexistent")
    if not (place / ID_FILE).exists():
        return ""
    mount.detach_below(place / "snapshots")
    remove_tree(place / "snapshots")
    (place / ID_FILE).unlink()
    return f"{place}/snapshots"


def _root(config: Config) -> str:
    """Last: with the lock in it another agent could have begun."""
    return _delete(config.storage.root)


def _delete(directory: Path) -> str:
    """Delete everything in it; the directory itself stays when a file system is mounted there."""
    if not directory.exists():
        return ""
    keep = os.path.ismount(directory)
    for entry in mount.mountinfo():
        if Path(entry.target).is_relative_to(directory) and Path(entry.target) != directory:
            mount.detach_below(Path(entry.target))
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
    if not keep:
        directory.rmdir()
    return f"everything in {directory}" if keep else str(directory)
