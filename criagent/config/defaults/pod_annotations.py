# SPDX-License-Identifier: Apache-2.0
"""Annotations of pods that the agent itself obeys, each only where its name is allowed.

Beside the agent's own names are those of CRI-O, for pods that were written for it.
"""

from __future__ import annotations

from collections.abc import Sequence

SHM_SIZE = ("runtime.criagent.io/shm-size", "shm-size.crio.io", "io.kubernetes.cri-o.ShmSize")
DEVICES = ("runtime.criagent.io/devices", "devices.crio.io", "io.kubernetes.cri-o.Devices")
KNOWN = (*SHM_SIZE, *DEVICES)


def problem(names: Sequence[str]) -> str:
    """What is wrong with a list of allowed annotations; "" = nothing."""
    for name in names:
        if name not in KNOWN:
            return f"{name[:120]!r} is not an annotation that the agent knows: {', '.join(KNOWN)}"
    return ""
