# SPDX-License-Identifier: Apache-2.0
"""Facts about this node that specifications depend on, read once at start."""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
from pathlib import Path
from typing import Literal

from criagent.base.capabilities import NAMES
from criagent.kernel import cgroupfs
from criagent.runtime.node.defaults import ContainerDefaults

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_CPUS = Path("/sys/devices/system/cpu")
_NR_OPEN = Path("/proc/sys/fs/nr_open")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Facts about this node, read once at start."""

    capabilities: frozenset[
        str
    ]  # capabilities that the daemon holds and can pass on: "CAP_CHOWN", ...
    nofile: tuple[int, int] = (1024, 524288)  # soft, hard; already clamped to what may be set
    oom_score_floor: int = -1000  # the lowest oom_score_adj that may be set
    controllers: frozenset[str] = frozenset()  # of cgroup v2, usable by containers
    missing_controllers: Literal["error", "ignore"] = "error"
    swap: bool = False  # memory.swap.max exists
    apparmor: bool = False
    selinux: bool = False
    seccomp: bool = True
    nsdelegate: bool = False  # cgroup namespaces bound what their processes may change
    machine: str = "x86_64"
    thermal_paths: tuple[str, ...] = ()  # .../cpuN/thermal_throttle that exist here
    defaults: ContainerDefaults = ContainerDefaults()


def read_node_facts(
    *, nofile: tuple[int, int], missing_controllers: Literal["error", "ignore"]
) -> NodeFacts:
    """What the daemon may pass on and what the kernel supports."""
    capabilities = held_capabilities()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    may_raise = "CAP_SYS_RESOURCE" in capabilities or most == resource.RLIM_INFINITY
    # fs.nr_open bounds every process (man 2 getrlimit).
    hard = min(nofile[1], int(_NR_OPEN.read_text()) if may_raise else most)
    return NodeFacts(
        capabilities=capabilities,
        nofile=(min(nofile[0], hard), hard),
        oom_score_floor=-1000 if "CAP_SYS_RESOURCE" in capabilities else _own_oom_score(),
        controllers=controllers(),
        missing_controllers=missing_controllers,
        swap=counts_swap(),
        # In a container the kernel's AppArmor is on, but the files to load profiles are missing.
        apparmor=_says("/sys/module/apparmor/parameters/enabled", "Y") and PROFILES.exists(),
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        nsdelegate=cgroupfs.has_nsdelegate(),
        machine=platform.machine(),
        thermal_paths=tuple(sorted(str(p) for p in _CPUS.glob("cpu[0-9]*/thermal_throttle"))),
    )


def held_capabilities() -> frozenset[str]:
    """Names of the permitted capabilities of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for bit, name in enumerate(NAMES) if mask >> bit & 1)
    return frozenset()


def has_all_ids() -> bool:
    """Whether every group exists here: false in a user namespace (man 7 user_namespaces)."""
    return Path("/proc/self/gid_map").read_text().split() == ["0", "0", "4294967295"]


def systemd_manages() -> bool:
    """Whether systemd is this system's first process and answers: false in a container that only
    has the node's /run/systemd/system.
    """
    return Path("/run/systemd/system").is_dir() and Path("/run/systemd/private").exists()


def controllers() -> frozenset[str]:
    """Controllers of the cgroup v2 tree that containers can use.

    A cgroup with processes cannot enable further controllers for its children, unless it is the
    root (cgroup v2, "No Internal Process Constraint"): then only the enabled ones are usable, as
    for a daemon in a container.
    """
    passed_on = frozenset((cgroupfs.read("/", "cgroup.subtree_control") or "").split())
    is_root = cgroupfs.read("/", "cgroup.type") is None
    if is_root or not cgroupfs.read("/", "cgroup.procs"):
        return passed_on | frozenset((cgroupfs.read("/", "cgroup.controllers") or "").split())
    return passed_on


def counts_swap() -> bool:
    """Whether a cgroup has memory.swap.max; the root never has, so its children are checked."""
    if "memory" not in controllers() or not Path("/proc/swaps").exists():
        return False
    asked = [entry for entry in cgroupfs.ROOT.iterdir() if (entry / "memory.max").exists()]
    return not asked or any((entry / "memory.swap.max").exists() for entry in asked)


def _own_oom_score() -> int:
    return int(Path(f"/proc/{os.getpid()}/oom_score_adj").read_text())


def _says(path: str, word: str) -> bool:
    try:
        return Path(path).read_text().strip() == word
    except OSError:
        return False
