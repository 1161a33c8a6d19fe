# SPDX-License-Identifier: Apache-2.0
"""Other container runtimes of this node, and which one the kubelet uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, content, fine, listens, warning

_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
)
KUBELET = ("/var/lib/kubelet/kubeadm-flags.env", "/var/lib/kubelet/config.yaml")
_ENDPOINT = re.compile(
    r"^[^#\n]*(?:--container-runtime-endpoint[= ]|containerRuntimeEndpoint:\s*)[\"']?(?:unix://)?"
    r"([^\s\"']+)",
    re.MULTILINE,
)
_CURE = "drain the node, then switch the kubelet's endpoint (docs/moving-a-node.md)"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourFacts:
    """Sockets (no links) on which a process listens, and the kubelet's endpoint; "" = unknown."""

    sockets: tuple[str, ...] = ()
    kubelet: str = ""


def read() -> NeighbourFacts:
    """Inspect this node."""
    listening = {str(Path(path).resolve()) for path in _SOCKETS if listens(path)}
    found = [match[1] for path in KUBELET for match in _ENDPOINT.finditer(content(path))]
    kubelet = str(Path(found[0]).resolve()) if found else ""
    return NeighbourFacts(sockets=tuple(sorted(listening)), kubelet=kubelet)


def judge(facts: NeighbourFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    own = str(config.storage.socket.resolve())
    if facts.kubelet == own:
        yield fine("kubelet", "uses this agent")
    elif facts.kubelet:
        yield warning("kubelet", f"uses {facts.kubelet} instead of {own}", _CURE)
    for other in facts.sockets:
        if other == own:
            continue
        if facts.kubelet == own:
            yield fine("other runtime", f"{other}; the kubelet does not use it")
        else:
            yield warning("other runtime", f"another runtime listens on {other}", _CURE)
