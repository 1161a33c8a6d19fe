# SPDX-License-Identifier: Apache-2.0
"""The cgroup v2 tree, its controllers, and who manages it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, content, error, fine, listens, warning
from criagent.doctor.neighbours import KUBELET
from criagent.kernel import cgroupfs
from criagent.kernel.mount import mountinfo
from criagent.runtime.node.facts import controllers, systemd_manages

_KUBELETS = re.compile(r"^[^#\n]*(?:--cgroup-driver[= ]|cgroupDriver:\s*)[\"']?(\w+)", re.MULTILINE)
_WANTED = ("cpu", "cpuset", "memory", "pids", "io")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFacts:
    """What is mounted on /sys/fs/cgroup, and whether systemd and its bus are present."""

    fstype: str = "cgroup2"  # "" = nothing is mounted
    writable: bool = True
    controllers: frozenset[str] = frozenset(_WANTED)
    systemd: bool = False
    bus: bool = False  # D-Bus's system socket
    kubelets_driver: str = ""  # as in the kubelet's configuration; "" = not set


def read() -> CgroupFacts:
    """Inspect this node."""
    mounted = [entry for entry in mountinfo() if entry.target == str(cgroupfs.ROOT)]
    unified = bool(mounted) and mounted[-1].fstype == "cgroup2"
    drivers = [match[1] for path in KUBELET for match in _KUBELETS.finditer(content(path))]
    return CgroupFacts(
        fstype=mounted[-1].fstype if mounted else "",
        writable=bool(mounted) and "rw" in mounted[-1].options,
        controllers=controllers() if unified else frozenset(),
        systemd=systemd_manages(),
        bus=listens("/run/dbus/system_bus_socket"),
        kubelets_driver=drivers[0] if drivers else "",
    )


def judge(facts: CgroupFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    if facts.fstype != "cgroup2":
        there = f"{facts.fstype} (v1 or hybrid)" if facts.fstype else "nothing"
        yield error(
            "cgroups",
            f"/sys/fs/cgroup is {there}, not cgroup v2",
            "remove systemd.unified_cgroup_hierarchy=0 from the kernel's command line, or set "
            "it to 1, and reboot",
        )
        return
    if not facts.writable:
        yield error(
            "cgroups",
            "/sys/fs/cgroup is read-only",
            "mount it writable; a container that holds the agent needs its own cgroup namespace "
            "and privileges",
        )
        return
    yield fine("cgroups", "v2")
    yield _controllers(facts, config)
    driver = _chosen(facts, config)
    yield _driver(facts, config, driver)
    if facts.kubelets_driver not in {"", driver}:
        yield warning(
            "kubelet's cgroup driver",
            f"the kubelet uses {facts.kubelets_driver}, the agent uses {driver}; a kubelet "
            "before 1.31 does not switch by itself",
            f"set cgroupDriver: {driver} in the kubelet's configuration and restart the kubelet",
        )


def _chosen(facts: CgroupFacts, config: Config) -> str:
    wanted = config.runtime.cgroup_driver
    return ("systemd" if facts.systemd else "cgroupfs") if wanted == "auto" else wanted


def _controllers(facts: CgroupFacts, config: Config) -> Finding:
    missing = [name for name in _WANTED if name not in facts.controllers]
    if not missing:
        return fine("controllers", " ".join(_WANTED))
    ignored = config.runtime.missing_controllers == "ignore"
    effect = (
        "these limits are not enforced" if ignored else "containers with such limits are refused"
    )
    return warning(
        "controllers",
        f"missing controllers: {', '.join(missing)}; {effect}",
        "delegate them to this cgroup namespace (systemd: Delegate=yes; remove cgroup_disable= "
        "from the kernel's command line)"
        + ("" if ignored else ', or set runtime.missing_controllers = "ignore" on test nodes'),
    )


def _driver(facts: CgroupFacts, config: Config, driver: str) -> Finding:
    name = "cgroup driver"
    if driver == "cgroupfs":
        if facts.systemd:
            return warning(
                name,
                "cgroupfs on a node that systemd manages: two programs manage one cgroup tree",
                'set runtime.cgroup_driver = "auto" in criagent and cgroupDriver: systemd '
                "in the kubelet",
            )
        return fine(name, "cgroupfs")
    if not facts.systemd:
        return error(
            name,
            "systemd, but systemd does not manage this node",
            'set runtime.cgroup_driver = "auto"',
        )
    if facts.bus:
        return fine(name, "systemd")
    handler = config.runtime.handlers[config.runtime.default_handler]
    text = "systemd, but D-Bus does not listen on /run/dbus/system_bus_socket"
    cure = "install and start dbus (systemctl start dbus.socket)"
    if handler.type == "runc":
        return warning(name, f"{text}; runc reaches systemd directly, but crun needs D-Bus", cure)
    return error(
        name, f"{text}, and crun creates its scopes through D-Bus (runc does not need it)", cure
    )
