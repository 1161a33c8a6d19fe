# SPDX-License-Identifier: Apache-2.0
"""GOMAXPROCS from the CPU request, as CRI-O's min_injected_gomaxprocs; pure.

Go takes it from a CPU limit itself, but without one runs as many threads as the node has CPUs.
"""

from __future__ import annotations

from criagent.model.common import Resources

_NAME = "GOMAXPROCS="
_SHARES = 1024  # of one CPU (the kubelet's MilliCPUToShares)
_CLASSES = ("burstable", "besteffort")  # in the kubelet's names of cgroups


def gomaxprocs(
    environment: list[str], *, least: int, resources: Resources, cgroup_parent: str
) -> list[str]:
    """The variables to add to `environment`: none, or GOMAXPROCS.

    Twice the CPUs of the request, so that idle CPUs can be used, and `least` or more. Guaranteed
    pods are left alone: their CPUs are theirs.
    """
    if resources.cpu_quota > 0 or not any(name in cgroup_parent for name in _CLASSES):
        return []
    if any(entry.startswith(_NAME) for entry in environment):
        return []
    return [f"{_NAME}{max((resources.cpu_shares * 2 + _SHARES - 1) // _SHARES, 1, least)}"]
