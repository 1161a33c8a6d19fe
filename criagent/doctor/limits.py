# SPDX-License-Identifier: Apache-2.0
"""Kernel limits that a node with many pods reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, error, fine, number, warning

# All containers of root share root's inotify instances; the kernel's default is 128.
_INSTANCES, _WATCHES = 512, 65536
_PIDS = 65536
_FILES = 100_000
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """Values of sysctls; None = the kernel has no such key."""

    inotify_instances: int | None = 8192
    inotify_watches: int | None = 524_288
    pid_max: int | None = 4_194_304
    nr_open: int | None = 1_073_741_816
    file_max: int | None = 1_000_000
    no_namespaces: tuple[str, ...] = ()  # kinds of namespaces whose limit is 0


def read() -> LimitFacts:
    """Inspect this node."""
    return LimitFacts(
        inotify_instances=number("/proc/sys/fs/inotify/max_user_instances"),
        inotify_watches=number("/proc/sys/fs/inotify/max_user_watches"),
        pid_max=number("/proc/sys/kernel/pid_max"),
        nr_open=number("/proc/sys/fs/nr_open"),
        file_max=number("/proc/sys/fs/file-max"),
        no_namespaces=tuple(
            kind for kind in _NAMESPACES if number(f"/proc/sys/user/max_{kind}_namespaces") == 0
        ),
    )


def judge(facts: LimitFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    yield _at_least(
        "inotify",
        {
            "fs.inotify.max_user_instances": (facts.inotify_instances, _INSTANCES),
            "fs.inotify.max_user_watches": (facts.inotify_watches, _WATCHES),
        },
        'programs in pods fail with "too many open files"',
    )
    yield _at_least(
        "open files",
        {
            "fs.nr_open": (facts.nr_open, config.runtime.nofile_hard),
            "fs.file-max": (facts.file_max, _FILES),
        },
        "containers get a lower limit than runtime.nofile_hard, or none",
    )
    yield _at_least(
        "processes",
        {"kernel.pid_max": (facts.pid_max, _PIDS)},
        "the kubelet evicts pods for it early",
    )
    if facts.no_namespaces:
        names = ", ".join(f"user.max_{kind}_namespaces" for kind in facts.no_namespaces)
        yield error("namespaces", f"{names} is 0: no pod can start", "raise it with sysctl")
    else:
        yield fine("namespaces", "of every kind")


def _at_least(name: str, wanted: dict[str, tuple[int | None, int]], effect: str) -> Finding:
    low = [
        (key, have, least)
        for key, (have, least) in wanted.items()
        if have is not None and have < least
    ]
    if not low:
        return fine(name, ", ".join(f"{key} {have}" for key, (have, _) in wanted.items()))
    settings = " ".join(f"{key}={least}" for key, _, least in low)
    return warning(
        name,
        f"{', '.join(f'{key} is {have}' for key, have, _ in low)}: {effect}",
        f"sysctl -w {settings}; add the same to /etc/sysctl.d/",
    )
