# SPDX-License-Identifier: Apache-2.0
"""Capabilities, seccomp, AppArmor, SELinux, user namespaces."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.doctor.finding import Finding, content, error, fine, number, warning
from criagent.runtime.node.facts import held_capabilities
from criagent.runtime.spec.security.apparmor import PLACES
from criagent.runtime.spec.security.selinux import read_contexts

_NEEDED = ("SYS_ADMIN", "NET_ADMIN", "CHOWN", "DAC_OVERRIDE", "MKNOD", "SETUID", "SETGID", "KILL")
_PROGRAM_TYPE = "container_runtime_exec_t"
_ALL = frozenset(f"CAP_{name}" for name in (*_NEEDED, "SYS_RESOURCE"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityFacts:
    """Contents of kernel files; "" = missing."""

    capabilities: frozenset[str] = _ALL
    seccomp: bool = True
    apparmor: str = ""
    apparmor_parser: bool = True
    selinux: str = ""
    selinux_contexts: bool = True  # whether the policy defines contexts for containers
    label: str = "system_u:object_r:container_runtime_exec_t:s0"  # of the agent's program
    modules: str = ""
    user_namespaces: int | None = 100_000  # user.max_user_namespaces; None = the kernel has none
    unshare: bool = True


def read() -> SecurityFacts:
    """Inspect this node."""
    return SecurityFacts(
        capabilities=held_capabilities(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=content("/sys/module/apparmor/parameters/enabled"),
        apparmor_parser=shutil.which("apparmor_parser", path=PLACES) is not None,
        selinux=content("/sys/fs/selinux/enforce"),
        selinux_contexts=read_contexts() is not None,
        label=_label(Path(sys.argv[0])),
        modules=content("/sys/kernel/security/lsm"),
        user_namespaces=number("/proc/sys/user/max_user_namespaces"),
        unshare=shutil.which("unshare") is not None,
    )


def judge(facts: SecurityFacts) -> Iterator[Finding]:
    """Findings on `facts`."""
    yield from _capabilities(facts)
    if facts.seccomp:
        yield fine("seccomp", "available")
    else:
        yield warning(
            "seccomp",
            "not in this kernel: the profile RuntimeDefault cannot be enforced",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        )
    yield fine("security modules", facts.modules or "none listed")
    yield _apparmor(facts)
    yield _selinux(facts)
    yield _user_namespaces(facts)


def _capabilities(facts: SecurityFacts) -> Iterator[Finding]:
    missing = [name for name in _NEEDED if f"CAP_{name}" not in facts.capabilities]
    if missing:
        yield error(
            "capabilities",
            f"missing {', '.join(missing)}",
            "run as root with these capabilities",
        )
        return
    yield fine("capabilities", "all required capabilities are present")
    if "CAP_SYS_RESOURCE" not in facts.capabilities:
        yield warning(
            "CAP_SYS_RESOURCE",
            "missing: the agent cannot lower oom_score_adj or raise limits for containers",
            "give the service CAP_SYS_RESOURCE",
        )


def _user_namespaces(facts: SecurityFacts) -> Finding:
    if facts.user_namespaces and facts.unshare:
        return fine("user namespaces", f"up to {facts.user_namespaces}")
    text, cure = "not in this kernel", "boot a kernel with CONFIG_USER_NS"
    if facts.user_namespaces:
        text, cure = "unshare is missing", "install util-linux"
    elif facts.user_namespaces is not None:
        text = "none allowed"
        cure = "sysctl -w user.max_user_namespaces=65536; add the same to /etc/sysctl.d/"
    return warning("user namespaces", f"{text}: pods with hostUsers: false cannot run", cure)


def _selinux(facts: SecurityFacts) -> Finding:
    mode = {"": "off", "0": "permissive", "1": "enforcing"}.get(facts.selinux, facts.selinux)
    if not facts.selinux:
        return fine("SELinux", mode)
    if not facts.selinux_contexts:
        return warning(
            "SELinux",
            f"{mode}, but the policy has no contexts for containers: containers get no labels",
            "install container-selinux",
        )
    if _PROGRAM_TYPE not in facts.label.split(":"):
        return warning(
            "SELinux",
            f"{mode}, but the agent's program has the label {facts.label or 'nothing'}: its "
            "containers may be denied to start",
            f"label the program with semanage fcontext -a -t {_PROGRAM_TYPE} and restorecon "
            "(docs/containers.md)",
        )
    return fine("SELinux", mode)


def _label(program: Path) -> str:
    """The SELinux context of the file, following links; "" = none."""
    try:
        return os.getxattr(program, "security.selinux").decode().rstrip("\0")
    except OSError:
        return ""


def _apparmor(facts: SecurityFacts) -> Finding:
    if facts.apparmor != "Y":
        return fine("AppArmor", "off: pods that request a profile of the node are refused")
    if facts.apparmor_parser:
        return fine("AppArmor", "on")
    return warning(
        "AppArmor",
        "on, but apparmor_parser is missing: profiles cannot be loaded",
        "install apparmor",
    )
