# SPDX-License-Identifier: Apache-2.0
"""Paths that a container may not read or write.

A list of the request is used unchanged, with one exception: the kubelet's default list is completed
with paths that were added later. An empty list means none in a user namespace: the kubelet sends it
for procMount Unmasked, which Kubernetes allows only there (KEP-4265). Elsewhere it means the
defaults: a request without a list should not get an open /proc.
"""

from __future__ import annotations

from collections.abc import Iterable

from criagent.model.container import ContainerSecurity

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # energy counters: a side channel
    "/sys/firmware",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def masked_paths(security: ContainerSecurity, thermal: Iterable[str], *, userns: bool) -> list[str]:
    """`linux.maskedPaths`; none for privileged containers."""
    if security.privileged or (userns and not security.masked_paths):
        return []
    if security.masked_paths:
        extra = [path for path in security.masked_paths if path not in MASKED]
        return [*MASKED, *thermal, *extra] if _is_default(security) else [*security.masked_paths]
    return [*MASKED, *thermal]


def readonly_paths(security: ContainerSecurity, *, userns: bool) -> list[str]:
    """`linux.readonlyPaths`; none for privileged containers."""
    if security.privileged or (userns and not security.readonly_paths):
        return []
    return list(security.readonly_paths or READONLY)


def _is_default(security: ContainerSecurity) -> bool:
    """Whether the list is the kubelet's default, which newer paths may be added to."""
    return {"/proc/kcore", "/proc/keys", "/proc/timer_list"} <= set(security.masked_paths)
