# SPDX-License-Identifier: Apache-2.0
"""Distribution, kernel, system calls, clock."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, content, error, fine, warning
from criagent.kernel.paths import RESOLVE_IN_ROOT, openat2
from criagent.runtime.node.minimum_versions import parse_version

_OS_RELEASE = "/etc/os-release"
_SLACK_S = 60.0  # clocks of file systems may differ by seconds

# The first tested or documented version of each, and where its kernel 6.7 or newer comes from.
_SUPPORTED = {"debian": (12, 0), "ubuntu": (24, 4), "fedora": (40, 0)}
_KERNELS = {
    ("debian", "12"): "apt install -t bookworm-backports linux-image-amd64, and reboot",
    ("ubuntu", "22.04"): "apt install linux-generic-hwe-22.04 (Linux 6.8), and reboot",
}
_NEWER = "boot Linux 6.7 or newer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """Results of trial calls are error numbers; 0 = the call works."""

    distribution: str = ""  # ID of os-release
    release: str = ""  # its VERSION_ID
    pretty: str = "an unknown system"
    kernel: str = "6.12.0"
    filesystems: frozenset[str] = frozenset({"overlay"})
    openat2: int = 0
    pidfd: int = 0
    behind_s: float = 0.0  # how far the clock is behind the newest file of the agent


def read(config: Config) -> SystemFacts:
    """Inspect this node."""
    known = os_release()
    return SystemFacts(
        distribution=known.get("ID", ""),
        release=known.get("VERSION_ID", ""),
        pretty=known.get("PRETTY_NAME", "an unknown system"),
        kernel=platform.release(),
        filesystems=frozenset(content("/proc/filesystems").split()),
        openat2=_errno(lambda: os.close(openat2(-100, "/", os.O_PATH, RESOLVE_IN_ROOT))),
        pidfd=_errno(lambda: os.close(os.pidfd_open(os.getpid()))),
        behind_s=_newest(config.storage.root) - time.time(),
    )


def judge(facts: SystemFacts) -> Iterator[Finding]:
    """Findings on `facts`."""
    yield _distribution(facts)
    yield _kernel(facts)
    if "overlay" in facts.filesystems:
        yield fine("overlay", "supported by the kernel")
    else:
        yield error(
            "overlay",
            "not supported by the kernel: no image can be unpacked",
            "modprobe overlay; echo overlay > /etc/modules-load.d/criagent.conf",
        )
    yield _call("openat2", facts.openat2, "Linux 5.6")
    yield _call("pidfd", facts.pidfd, "Linux 5.4")
    if facts.behind_s > _SLACK_S:
        yield warning(
            "clock",
            f"{facts.behind_s:.0f} s behind the newest file of the agent: the clock was set "
            "back, or is not set yet",
            "set the clock (timedatectl set-ntp true); certificates of registries depend on it",
        )
    else:
        yield fine("clock", "not behind the newest file of the agent")


def _distribution(facts: SystemFacts) -> Finding:
    name = "system"
    first = _SUPPORTED.get(facts.distribution)
    version = parse_version(f"{facts.release}.0")
    if first is None or version is None or version[:2] >= first:  # sid and rawhide have no number
        beside = "" if first else " (untested; tested are Debian, Ubuntu and Fedora)"
        return fine(name, facts.pretty + beside)
    return warning(
        name,
        f"{facts.pretty} is older than the supported versions",
        "upgrade to Debian 12, Ubuntu 24.04, Fedora 40 or newer",
    )


def _kernel(facts: SystemFacts) -> Finding:
    version = parse_version(facts.kernel) or (0, 0, 0)
    if version >= (6, 7, 0):
        return fine("kernel", facts.kernel)
    lacks = "it lacks lowerdir+, by which layers are mounted"
    if version < (5, 14, 0):
        lacks += ", and cgroup.kill"
    return error(
        "kernel",
        f"{facts.kernel} is older than 6.7: {lacks}",
        _KERNELS.get((facts.distribution, facts.release), _NEWER),
    )


def _call(name: str, number: int, since: str) -> Finding:
    if not number:
        return fine(name, "works")
    # EPERM is what a seccomp filter around the agent returns
    cure = (
        "allow the call in the seccomp filter"
        if number == errno.EPERM
        else f"boot {since} or newer"
    )
    return error(name, os.strerror(number).lower(), cure)


def os_release() -> dict[str, str]:
    """Keys and values of /etc/os-release (man 5 os-release); empty without it."""
    pairs = (line.partition("=") for line in content(_OS_RELEASE).splitlines())
    return {key: value.strip("\"'") for key, _, value in pairs}


def _newest(root: Path) -> float:
    """The latest change of files that cannot be from the future: the agent's code and database."""
    times = [Path(__file__).stat().st_mtime]
    for name in ("state.db", "state.db-wal"):
        try:
            times.append((root / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _errno(call: Callable[[], None]) -> int:
    try:
        call()
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0
