"""Checks of `doctor` beside those of programs: system calls, forwarding, LSMs, configuration.

`gather` looks, the others judge what it saw: no check reads the system itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from criagent.config import Config
from criagent.doctor import Finding
from criagent.kernel.paths import RESOLVE_IN_ROOT, openat2

_FORWARDING = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What `gather` saw: error numbers (0 = works), and contents of kernel files ("" = none)."""

    openat2: int = 0
    pidfd: int = 0
    forward4: str = "1"
    forward6: str = "1"
    apparmor: str = "Y"
    selinux: str = ""


def gather() -> Facts:
    """Ask the kernel. Changes nothing and raises nothing."""
    return Facts(
        openat2=_errno(lambda: os.close(openat2(-100, "/", os.O_PATH, RESOLVE_IN_ROOT))),
        pidfd=_errno(lambda: os.close(os.pidfd_open(os.getpid()))),
        forward4=_read(_FORWARDING[4]),
        forward6=_read(_FORWARDING[6]),
        apparmor=_read(Path("/sys/module/apparmor/parameters/enabled")),
        selinux=_read(Path("/sys/fs/selinux/enforce")),
    )


def configuration(path: Path, problems: Sequence[str]) -> Iterator[Finding]:
    """One finding for each problem."""
    for problem in problems:
        yield Finding(
            name="configuration",
            level="error",
            text=problem,
            cure="correct it; `criagent config default` prints every key",
        )
    if not problems:
        yield Finding(name="configuration", level="ok", text=str(path))


def system(facts: Facts, config: Config) -> Iterator[Finding]:
    """All findings on `facts`."""
    yield _call("openat2", facts.openat2, "Linux 5.6")
    yield _call("pidfd", facts.pidfd, "Linux 5.4")
    yield _forwarding(facts, config)
    yield _apparmor(facts)
    yield _selinux(facts)


def _call(name: str, error: int, since: str) -> Finding:
    if not error:
        return Finding(name=name, level="ok", text="works")
    # EPERM is what a seccomp filter around the agent gives
    cure = "allow it in the seccomp filter" if error == errno.EPERM else f"boot {since} or newer"
    return Finding(name=name, level="error", text=os.strerror(error).lower(), cure=cure)


def _forwarding(facts: Facts, config: Config) -> Finding:
    name = "forwarding"
    if config.network.backend != "builtin":
        return Finding(name=name, level="ok", text="left to the CNI network")
    families = {6 if ":" in cidr else 4 for cidr in config.network.pod_cidrs}
    values = {4: facts.forward4, 6: facts.forward6}
    unknown = sorted(family for family in families if not values[family])
    if unknown:
        return Finding(
            name=name,
            level="error",
            text=f"the kernel has no IPv{unknown[0]}, but network.pod_cidrs does",
            cure="take that network out of network.pod_cidrs, or enable the protocol",
        )
    off = sorted(family for family in families if values[family] == "0")
    text = f"off for {' and '.join(f'IPv{family}' for family in off)}" if off else "on"
    return Finding(name=name, level="ok", text=f"{text}; serve switches it on" if off else text)


def _apparmor(facts: Facts) -> Finding:
    on = facts.apparmor == "Y"
    text = "on" if on else "off: pods that ask for a profile are refused"
    return Finding(name="AppArmor", level="ok", text=text)


def _selinux(facts: Facts) -> Finding:
    text = {"": "off", "0": "permissive", "1": "enforcing"}.get(facts.selinux, facts.selinux)
    return Finding(name="SELinux", level="ok", text=text)


def _errno(call: Callable[[], None]) -> int:
    try:
        call()
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
