"""What a node needs to run pods: one small check each, with its cure.

Version floors are those below which the security advisories of the tools apply.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from criagent.config import Config
from criagent.errors import AgentError
from criagent.kernel import cgroupfs
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.kernel.nftables import Nftables

_NEEDED = ("SYS_ADMIN", "NET_ADMIN", "CHOWN", "DAC_OVERRIDE", "MKNOD", "SETUID", "SETGID", "KILL")
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
_UPPERDIRS = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "f2fs", "bcachefs"})
_FLOORS = {
    "crun": ("1.28",),
    "runc": ("1.3.6", "1.4.3", "1.5.0"),
    "conmon": ("2.1.2",),
    "cni": ("1.9.0",),
}
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    name: str
    level: Literal["ok", "warning", "error"]
    text: str
    cure: str = ""


def examine(config: Config) -> list[Finding]:
    """Every finding, in a fixed order. Runs `--version` of programs; changes nothing."""
    checks: list[Callable[[Config], Iterator[Finding]]] = [
        _kernel,
        _capabilities,
        _cgroups,
        _storage,
        _handlers,
        _conmon,
        _catatonit,
        _nftables,
        _conntrack,
        _cni,
        _cdi,
        _lsm,
    ]
    return [finding for check in checks for finding in check(config)]


def parse_version(text: str) -> Version | None:
    """The first version number in `text`."""
    match = _VERSION.search(text)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def below_floor(version: Version, floors: tuple[str, ...]) -> bool:
    """Whether no floor is met; a floor holds for its own minor series, the last one beyond it."""
    parsed = [found for floor in floors if (found := parse_version(floor)) is not None]
    for floor in parsed[:-1]:
        if version[:2] == floor[:2]:
            return version < floor
    return version < parsed[-1]


def _kernel(_: Config) -> Iterator[Finding]:
    release = platform.release()
    version = parse_version(release) or (0, 0, 0)
    if version < (5, 14, 0):
        yield Finding(
            name="kernel",
            level="error",
            text=f"{release} has no cgroup.kill or new mount calls",
            cure="boot Linux 6.7 or newer",
        )
    elif version < (6, 7, 0):
        yield Finding(
            name="kernel",
            level="error",
            text=f"{release} has no lowerdir+ for overlays",
            cure="boot Linux 6.7 or newer",
        )
    else:
        yield Finding(name="kernel", level="ok", text=release)
    known = Path("/proc/filesystems").read_text().split()
    if "overlay" in known:
        yield Finding(name="overlay", level="ok", text="known to the kernel")
    else:
        yield Finding(
            name="overlay", level="error", text="unknown to the kernel", cure="modprobe overlay"
        )
    seccomp = Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    yield Finding(
        name="seccomp",
        level="ok" if seccomp else "warning",
        text="available" if seccomp else "not in this kernel; RuntimeDefault cannot be enforced",
        cure="" if seccomp else "boot a kernel with CONFIG_SECCOMP_FILTER",
    )


def _capabilities(_: Config) -> Iterator[Finding]:
    from criagent.runtime.node_facts import held_capabilities

    held = held_capabilities()
    missing = [name for name in _NEEDED if f"CAP_{name}" not in held]
    if missing:
        yield Finding(
            name="capabilities",
            level="error",
            text=f"missing {', '.join(missing)}",
            cure="run as root with these capabilities",
        )
        return
    yield Finding(name="capabilities", level="ok", text="all that are needed")
    if "CAP_SYS_RESOURCE" not in held:
        yield Finding(
            name="CAP_SYS_RESOURCE",
            level="warning",
            text="missing: oom_score_adj cannot be lowered nor limits raised for containers",
            cure="give the service CAP_SYS_RESOURCE",
        )


def _cgroups(_: Config) -> Iterator[Finding]:
    root = [entry for entry in mountinfo() if entry.target == str(cgroupfs.ROOT)]
    if not root or root[-1].fstype != "cgroup2":
        yield Finding(
            name="cgroups",
            level="error",
            text="no cgroup v2 tree on /sys/fs/cgroup (v1 and hybrid layouts do not do)",
            cure="boot with systemd.unified_cgroup_hierarchy=1",
        )
        return
    yield Finding(name="cgroups", level="ok", text="v2")
    have = (cgroupfs.read("/", "cgroup.controllers") or "").split()
    missing = [name for name in _CONTROLLERS if name not in have]
    if missing:
        yield Finding(
            name="controllers",
            level="warning",
            text=f"missing {', '.join(missing)}: containers with such limits are refused",
            cure="delegate them to this cgroup namespace (systemd: Delegate=yes), or set "
            'runtime.missing_controllers = "ignore"',
        )
    else:
        yield Finding(name="controllers", level="ok", text=" ".join(_CONTROLLERS))


def _storage(config: Config) -> Iterator[Finding]:
    root = config.storage.root
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Finding(
            name="storage.root",
            level="error",
            text=f"{existing} cannot be written",
            cure="choose another storage.root, or remount it writable",
        )
        return
    entry = _mount_of(existing)
    if entry is not None and entry.fstype not in _UPPERDIRS:
        yield Finding(
            name="storage.root",
            level="error",
            text=f"{root} is on {entry.fstype}, which an overlay cannot write to",
            cure="put storage.root on ext4, xfs or btrfs",
        )
        return
    yield Finding(name="storage.root", level="ok", text=f"{root} ({entry.fstype if entry else ''})")


def _mount_of(path: Path) -> MountEntry | None:
    holders = [entry for entry in mountinfo() if path.is_relative_to(entry.target)]
    return max(holders, key=lambda entry: len(entry.target), default=None)


def _handlers(config: Config) -> Iterator[Finding]:
    for name, handler in config.runtime.handlers.items():
        needed = name == config.runtime.default_handler
        yield _program(f"handler {name}", handler.path, handler.type, needed=needed)


def _conmon(config: Config) -> Iterator[Finding]:
    yield _program("conmon", config.runtime.conmon, "conmon", needed=True)


def _catatonit(config: Config) -> Iterator[Finding]:
    found = os.access(config.runtime.catatonit, os.X_OK)
    yield Finding(
        name="catatonit",
        level="ok" if found else "error",
        text=str(config.runtime.catatonit) if found else f"{config.runtime.catatonit} is missing",
        cure="" if found else "install catatonit; pods that share a PID namespace need it",
    )


def _program(name: str, path: Path, kind: str, *, needed: bool) -> Finding:
    output = _output(path, "--version")
    if output is None:
        return Finding(
            name=name,
            level="error" if needed else "warning",
            text=f"{path} cannot be run",
            cure=f"install {kind}, or change its path in the configuration",
        )
    version = parse_version(output)
    if version is None:
        return Finding(name=name, level="warning", text=f"{path} tells no version")
    text = f"{path} {'.'.join(map(str, version))}"
    if below_floor(version, _FLOORS[kind]) or (kind == "crun" and version == (1, 29, 0)):
        return Finding(
            name=name,
            level="warning",
            text=f"{text}: known security problems",
            cure=f"update {kind} to {' / '.join(_FLOORS[kind])} or newer"
            + (" (but not 1.29.0)" if kind == "crun" else ""),
        )
    return Finding(name=name, level="ok", text=text)


def _output(path: Path, word: str) -> str | None:
    try:
        done = subprocess.run([path, word], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr


def _nftables(config: Config) -> Iterator[Finding]:
    if config.network.backend != "builtin":
        return
    try:
        nft = Nftables()
        nft.run("list tables")
        nft.close()
    except AgentError as exc:
        yield Finding(
            name="nftables", level="error", text=str(exc), cure="install libnftables1; be root"
        )
    else:
        yield Finding(name="nftables", level="ok", text="libnftables works")


def _conntrack(config: Config) -> Iterator[Finding]:
    if config.network.backend != "builtin":
        return
    found = shutil.which("conntrack")
    yield Finding(
        name="conntrack",
        level="ok" if found else "warning",
        text=found or "missing: UDP hostPorts may keep old flows",
        cure="" if found else "install conntrack",
    )


def _cni(config: Config) -> Iterator[Finding]:
    directory = config.network.cni_conf_dir
    files = [p for p in directory.iterdir() if p.is_file()] if directory.is_dir() else []
    if config.network.backend == "builtin":
        if files:
            yield Finding(
                name="CNI",
                level="warning",
                text=f"{files[0]} is not used: network.backend is builtin",
                cure='set network.backend = "cni", or remove the file',
            )
        return
    from criagent.net.cni_config import CniConfigError, find_plugin, load_first

    try:
        network = load_first(directory)
        programs = [find_plugin(p["type"], config.network.cni_bin_dirs) for p in network.plugins]
    except CniConfigError as exc:
        yield Finding(name="CNI", level="error", text=str(exc), cure="install a CNI network")
        return
    for program in programs:
        version = parse_version(_output(program, "--version") or "")
        if version is not None and below_floor(version, _FLOORS["cni"]):
            yield Finding(
                name="CNI",
                level="warning",
                text=f"{program} {'.'.join(map(str, version))}: known security problems",
                cure=f"update the CNI plugins to {_FLOORS['cni'][0]} or newer",
            )
    yield Finding(name="CNI", level="ok", text=f'network "{network.name}"')


def _cdi(config: Config) -> Iterator[Finding]:
    from criagent.runtime.cdi_folders import CdiFolders

    registry = CdiFolders(config.runtime.cdi_spec_dirs, quiet=True).registry()
    for problem in registry.problems:
        yield Finding(
            name="CDI",
            level="warning",
            text=problem,
            cure="correct or remove the file; its devices cannot be had",
        )
    if not registry.problems:
        yield Finding(name="CDI", level="ok", text=f"{len(registry.devices)} devices")


def _lsm(_: Config) -> Iterator[Finding]:
    try:
        names = Path("/sys/kernel/security/lsm").read_text().strip()
    except OSError:
        names = ""
    yield Finding(name="security modules", level="ok", text=names or "none to be seen")
