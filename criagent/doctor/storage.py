# SPDX-License-Identifier: Apache-2.0
"""The root directory: its file system, free space, inodes, mount options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.config.sections import Config
from criagent.config.storage_drivers import AUTO, canonical
from criagent.doctor.finding import Finding, error, fine, warning
from criagent.image.snapshots.by_handler import directory
from criagent.kernel import project_quota
from criagent.kernel.mount import MountEntry, holder
from criagent.store import set_aside
from criagent.store.read_only import stored_images

_UPPERDIRS = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "f2fs", "bcachefs"})
# Below these the kubelet evicts pods (its defaults for imagefs.available and nodefs.inodesFree).
_LOW_SPACE, _LOW_INODES = 0.15, 0.05
_NO_SPACE, _NO_INODES = 100 << 20, 1000
_NO_RUN_SPACE, _LOW_RUN_SPACE = 1 << 20, 0.05  # a container needs about 50 KB there

_BOUND = frozenset({"native", "btrfs"})  # drivers whose root file systems are bind mounts
_PACKAGES = {"mkfs.erofs": "erofs-utils", "fuse-overlayfs": "fuse-overlayfs"}
_PROGRAMS = {"erofs": "mkfs.erofs", "fuse-overlayfs": "fuse-overlayfs"}  # by driver


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFacts:
    """Facts about storage.containers_root, or about its closest parent that exists."""

    fstype: str = "ext4"
    options: frozenset[str] = frozenset()
    read_only: bool = False
    apart: bool = True  # on another file system than storage.root
    total_bytes: int = 100 << 30
    free_bytes: int = 50 << 30
    total_inodes: int = 0
    free_inodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """Facts about storage.root, or about its closest parent that exists."""

    existing: Path = Path("/var/lib")
    fstype: str = "ext4"
    options: frozenset[str] = frozenset()
    read_only: bool = False
    writable: bool = True
    total_bytes: int = 100 << 30
    free_bytes: int = 50 << 30
    total_inodes: int = 0  # 0 = the file system has no fixed number
    free_inodes: int = 0
    run_fstype: str = "tmpfs"  # of storage.run_dir
    run_total_bytes: int = 1 << 30
    run_free_bytes: int = 1 << 30
    programs: frozenset[str] = frozenset(_PACKAGES)  # of storage drivers, that are on PATH
    fuse: bool = True  # /dev/fuse exists
    set_aside_rows: int = 0
    store_problems: tuple[str, ...] = ()  # of additional stores that cannot be used
    containers: PlaceFacts | None = None  # of storage.containers_root
    handlers: Mapping[str, str] = field(default_factory=dict)  # file systems of their drivers
    size_limits: bool = True  # writable layers lie on a file system with project quotas


def read(config: Config) -> StorageFacts:
    """Inspect this node."""
    existing = _existing(config.storage.root)
    size = os.statvfs(existing)
    run_dir = _existing(config.storage.run_dir)
    entry, run, run_size = _mount_of(existing), _mount_of(run_dir), os.statvfs(run_dir)
    return StorageFacts(
        existing=existing,
        fstype=entry.fstype if entry else "",
        options=entry.options if entry else frozenset(),
        read_only=bool(size.f_flag & os.ST_RDONLY),
        writable=os.access(existing, os.W_OK),
        total_bytes=size.f_blocks * size.f_frsize,
        free_bytes=size.f_bavail * size.f_frsize,
        total_inodes=size.f_files,
        free_inodes=size.f_favail,
        run_fstype=run.fstype if run else "",
        run_total_bytes=run_size.f_blocks * run_size.f_frsize,
        run_free_bytes=run_size.f_bavail * run_size.f_frsize,
        programs=frozenset(filter(shutil.which, _PACKAGES)),
        fuse=Path("/dev/fuse").exists(),
        set_aside_rows=set_aside.count(config.storage.root / "state.db"),
        containers=_containers(config.storage.containers_root, existing),
        handlers={
            handler: _fstype(directory(config.storage.root, driver))
            for handler, driver in _of_handlers(config).items()
        },
        size_limits=_size_limits(Path(config.storage.containers_root or config.storage.root)),
        store_problems=tuple(filter(None, map(_store_problem, config.storage.additional_stores))),
    )


def _fstype(place: Path) -> str:
    entry = _mount_of(_existing(place))
    return entry.fstype if entry else ""


def _store_problem(root: Path) -> str:
    try:
        stored_images(root / "state.db")
    except (AgentError, OSError) as exc:
        return str(exc)
    return ""


def _containers(place: str, root: Path) -> PlaceFacts | None:
    if not place:
        return None
    existing = _existing(Path(place))
    size, entry = os.statvfs(existing), _mount_of(existing)
    return PlaceFacts(
        fstype=entry.fstype if entry else "",
        options=entry.options if entry else frozenset(),
        read_only=bool(size.f_flag & os.ST_RDONLY),
        apart=existing.stat().st_dev != root.stat().st_dev,
        total_bytes=size.f_blocks * size.f_frsize,
        free_bytes=size.f_bavail * size.f_frsize,
        total_inodes=size.f_files,
        free_inodes=size.f_favail,
    )


def _size_limits(place: Path) -> bool:
    try:
        fd = os.open(_existing(place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # another finding says that root must run this
        return False
    try:
        return project_quota.enforced(fd)
    finally:
        os.close(fd)


def judge(facts: StorageFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    yield _root(facts, config)
    yield _driver(facts, config)
    yield from _drivers_of_handlers(facts, config)
    yield _space("disk space", facts, "images cannot be pulled")
    yield _inodes("inodes", facts, "images cannot be pulled")
    if facts.containers is not None:
        yield _containers_root(facts.containers, config)
        yield _space("disk space of containers", facts.containers, "containers cannot write")
        yield _inodes("inodes of containers", facts.containers, "containers cannot write")
    yield from _limits(facts, config)
    for problem in facts.store_problems:
        yield warning(
            "storage.additional_stores",
            f"the agent starts without one: {problem}",
            "repair it, or take it out of storage.additional_stores",
        )
    if facts.set_aside_rows:
        yield warning(
            "state database",
            f"{facts.set_aside_rows} rows could not be decoded and were set aside",
            "report the row_set_aside lines of the log as a bug; the rows remain in the table "
            f"set_aside of {config.storage.root}/state.db",
        )
    yield _run_dir(facts, config)


def _run_dir(facts: StorageFacts, config: Config) -> Finding:
    name, place = "storage.run_dir", config.storage.run_dir
    free, total = facts.run_free_bytes, facts.run_total_bytes
    text = f"{free / 1e6:.1f} MB free of {total / 1e6:.1f} MB at {place}"
    cure = f"find what fills it (du -xh --max-depth=2 {place.parent}) and remove that"
    if free < _NO_RUN_SPACE:
        return error(name, f"{text}: no container can be created", cure)
    if total and free / total < _LOW_RUN_SPACE:
        return warning(name, f"{text}: soon no container can be created", cure)
    if facts.run_fstype == "tmpfs":
        return fine(name, f"{place} (tmpfs)")
    return warning(
        name,
        f"{place} is on {facts.run_fstype}, which survives a reboot",
        "set storage.run_dir to a directory on tmpfs, such as /run/criagent",
    )


def _root(facts: StorageFacts, config: Config) -> Finding:
    name, root = "storage.root", config.storage.root
    if facts.read_only:
        return error(
            name,
            f"{facts.existing} is on a read-only file system",
            "remount it read-write (check dmesg for disk errors), or set another storage.root",
        )
    if not facts.writable:
        return error(name, f"{facts.existing} is not writable", "run as root")
    driver = canonical(config.storage.driver)
    if driver in {AUTO, "overlay"} and facts.fstype not in _UPPERDIRS:
        return error(
            name,
            f"{root} is on {facts.fstype}, which does not support overlay's upper layers",
            'put storage.root on ext4, xfs (ftype=1) or btrfs, or set storage.driver = "native" '
            "before the first pull",
        )
    if driver == "btrfs" and facts.fstype != "btrfs":
        return error(
            name,
            f"{root} is on {facts.fstype}, and the storage driver btrfs needs btrfs",
            "mount a btrfs file system there (mkfs.btrfs of btrfs-progs), or set "
            'storage.driver = "overlay" before the first pull',
        )
    hindered = _hindered(name, str(root), facts.options, driver)
    return hindered or fine(name, f"{root} ({facts.fstype})")


def _hindered(name: str, place: str, options: AbstractSet[str], driver: str) -> Finding | None:
    """The finding on mount options that containers inherit: by bind mounts of directories there.

    Overlay, FUSE and the file systems of volumes are mounts of their own, without these options.
    """
    hindering = sorted({"noexec", "nosuid", "nodev"} & options)
    if not hindering:
        return None
    if driver in _BOUND and "noexec" in hindering:
        return error(
            name,
            f"{place} is mounted noexec: with the driver {driver} no program of an image can start",
            "remount it with exec",
        )
    what = "root file systems and declared volumes" if driver in _BOUND else "declared volumes"
    return warning(
        name,
        f"{place} is mounted {','.join(hindering)}, and so are the containers' {what}",
        "remount it without these options",
    )


def _driver(facts: StorageFacts, config: Config) -> Finding:
    return needs("storage.driver", canonical(config.storage.driver), facts)


def _drivers_of_handlers(facts: StorageFacts, config: Config) -> Iterator[Finding]:
    for handler, driver in sorted(_of_handlers(config).items()):
        name, fstype = f"runtime.handlers.{handler}.snapshotter", facts.handlers[handler]
        place = directory(config.storage.root, driver)
        if driver == "btrfs" and fstype != "btrfs":
            cure = "mount a btrfs file system there, or remove the key"
            yield error(name, f"{place} is on {fstype}, and the agent does not start", cure)
        elif driver in {"overlay", "erofs"} and fstype not in _UPPERDIRS:
            cure = "mount ext4, xfs (ftype=1) or btrfs there, or set another driver"
            yield error(name, f"{place} is on {fstype}, which cannot hold upper layers", cure)
        else:
            yield needs(name, driver, facts)


def _of_handlers(config: Config) -> dict[str, str]:
    """Drivers of handlers that have another one than storage.driver, by handler."""
    return {
        name: canonical(handler.snapshotter)
        for name, handler in config.runtime.handlers.items()
        if canonical(handler.snapshotter) not in {"", canonical(config.storage.driver)}
    }


def needs(name: str, driver: str, facts: StorageFacts) -> Finding:
    """The finding `name` on what the storage driver needs of the node."""
    program = _PROGRAMS.get(driver, "")
    if program and program not in facts.programs:
        package = _PACKAGES[program]
        return error(
            name,
            f"the storage driver {driver} needs {program}, which is not on PATH",
            f"install {package} (Debian, Ubuntu, Fedora)",
        )
    if driver == "fuse-overlayfs" and not facts.fuse:
        return error(
            name,
            "the storage driver fuse-overlayfs needs /dev/fuse, which does not exist",
            "modprobe fuse; echo fuse > /etc/modules-load.d/criagent-fuse.conf",
        )
    return fine(name, driver)


def _containers_root(facts: PlaceFacts, config: Config) -> Finding:
    name, place = "storage.containers_root", config.storage.containers_root
    if facts.read_only:
        cure = "remount it read-write (check dmesg for disk errors), or set another directory"
        return error(name, f"{place} is on a read-only file system", cure)
    if canonical(config.storage.driver) != "native" and facts.fstype not in _UPPERDIRS:
        return error(
            name,
            f"{place} is on {facts.fstype}, which does not support overlay's upper layers",
            "put it on ext4, xfs (ftype=1) or btrfs",
        )
    driver = canonical(config.storage.driver)
    if hindered := _hindered(name, place, facts.options, driver):
        return hindered
    if not facts.apart:
        return warning(
            name,
            f"{place} is on the same file system as storage.root",
            "mount its own file system there, or remove the key",
        )
    return fine(name, f"{place} ({facts.fstype})")


def _limits(facts: StorageFacts, config: Config) -> Iterator[Finding]:
    storage = config.storage
    if not storage.container_limit_bytes and not storage.allowed_annotations:
        return
    name, driver = "limits of writable layers", canonical(storage.driver)
    by_quota = driver in {AUTO, "overlay", "native", "erofs"}
    if not by_quota or facts.size_limits:
        yield fine(name, "by project quota" if by_quota else f"by the storage driver {driver}")
        return
    place = storage.containers_root or storage.root
    yield error(
        name,
        f"the file system of {place} has no project quotas, and the agent does not start",
        "mount it with the option prjquota (xfs; ext4 after `tune2fs -O project,quota -Q prjquota "
        "DEVICE`), or remove storage.container_limit_bytes and storage.allowed_annotations",
    )


def _space(name: str, facts: StorageFacts | PlaceFacts, full: str) -> Finding:
    free = facts.free_bytes
    part = free / facts.total_bytes if facts.total_bytes else 1.0
    text = f"{free / 1e9:.1f} GB free of {facts.total_bytes / 1e9:.1f} GB"
    cure = "run `criagent image prune`, remove other files, or enlarge the disk"
    if free < _NO_SPACE:
        return error(name, f"{text}: {full}", cure)
    if part < _LOW_SPACE:
        return warning(name, f"{text}: the kubelet evicts pods below {_LOW_SPACE:.0%}", cure)
    return fine(name, text)


def _inodes(name: str, facts: StorageFacts | PlaceFacts, full: str) -> Finding:
    free = facts.free_inodes
    if not facts.total_inodes:
        return fine(name, "no fixed number")
    text = f"{free} free of {facts.total_inodes}"
    cure = "run `criagent image prune`, or create the file system with more inodes (mkfs.ext4 -N)"
    if free < _NO_INODES:
        return error(name, f"{text}: {full}", cure)
    if free / facts.total_inodes < _LOW_INODES:
        return warning(name, f"{text}: the kubelet evicts pods below {_LOW_INODES:.0%}", cure)
    return fine(name, text)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _mount_of(path: Path) -> MountEntry | None:
    return holder(path.resolve())
