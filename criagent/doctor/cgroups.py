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
    """What is mounted on /sys/fs/cgroup, and whether systemd and its bus are there."""

    fstype: str = "cgroup2"  # "" = nothing is mounted
    writable: bool = True
    controllers: frozenset[str] = frozenset(_WANTED)
    systemd: bool = False
    bus: bool = False  # D-Bus's system socket
    kubelets_driver: str = ""  # what the kubelet's configuration names, "" = nothing


def read() -> CgroupFacts:
    """Look at this node."""
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
            f"/sys/fs/cgroup has {there}; want cgroup v2",
            "boot without systemd.unified_cgroup_hierarchy=0, or with =1 on the kernel's "
            "command line",
        )
        return
    if not facts.writable:
        yield error(
            "cgroups",
            "/sys/fs/cgroup is read-only",
            "mount it writable; a container around the agent needs its own cgroup namespace and "
            "privileges",
        )
        return
    yield fine("cgroups", "v2")
    yield _controllers(facts, config)
    driver = _chosen(facts, config)
    yield _driver(facts, config, driver)
    if facts.kubelets_driver not in {"", driver}:
        yield warning(
            "kubelet's cgroup driver",
            f"{facts.kubelets_driver}, and the agent's is {driver}: a kubelet before 1.31 keeps to "
            "its own",
            f"set cgroupDriver: {driver} in the kubelet's configuration, and restart it",
        )


def _chosen(facts: CgroupFacts, config: Config) -> str:
    wanted = config.runtime.cgroup_driver
    return ("systemd" if facts.systemd else "cgroupfs") if wanted == "auto" else wanted


def _controllers(facts: CgroupFacts, config: Config) -> Finding:
    missing = [name for name in _WANTED if name not in facts.controllers]
    if not missing:
        return fine("controllers", " ".join(_WANTED))
    ignored = config.runtime.missing_controllers == "ignore"
    effect = "such limits do not hold" if ignored else "containers with such limits are refused"
    return warning(
        "controllers",
        f"missing {', '.join(missing)}: {effect}",
        "delegate them to this cgroup namespace (systemd: Delegate=yes; boot without "
        "cgroup_disable=)"
        + ("" if ignored else ', or set runtime.missing_controllers = "ignore" on test grounds'),
    )


def _driver(facts: CgroupFacts, config: Config, driver: str) -> Finding:
    name = "cgroup driver"
    if driver == "cgroupfs":
        if facts.systemd:
            return warning(
                name,
                "cgroupfs on a node that systemd manages: two owners of one tree",
                'set runtime.cgroup_driver = "auto", and the kubelet\'s cgroupDriver to systemd',
            )
        return fine(name, "cgroupfs")
    if not facts.systemd:
        return error(
            name,
            "systemd, but it does not manage this node",
            'set runtime.cgroup_driver = "auto"',
        )
    if facts.bus:
        return fine(name, "systemd")
    handler = config.runtime.handlers[config.runtime.default_handler]
    text = "systemd, but D-Bus does not listen on /run/dbus/system_bus_socket"
    cure = "install and start dbus (systemctl start dbus.socket)"
    if handler.type == "runc":
        return warning(name, f"{text}; runc asks systemd directly, crun could not", cure)
    return error(name, f"{text}, and crun creates scopes through it (runc could do without)", cure)
