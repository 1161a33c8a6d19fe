# SPDX-License-Identifier: Apache-2.0
"""Which annotations of pods and containers the OCI runtime gets: those that its handler lists."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

from criagent.config.handler_values import PRIVILEGED_PREFIXES
from criagent.model.container import ContainerSpec
from criagent.model.sandbox import SandboxSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PassedAnnotations:
    """The patterns of one handler, and annotations of its `own` that nobody can change.

    In a pattern * stands for any characters but "/", ? for one of them, as in containerd's
    pod_annotations (Go's path.Match). A wildcard never reaches the annotations by which crun and
    systemd act as root of the node.
    """

    of_pod: tuple[str, ...] = ()
    of_container: tuple[str, ...] = ()
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, sandbox: SandboxSpec, spec: ContainerSpec) -> dict[str, str]:
        """Those of a container. Its own value wins over its pod's."""
        return {
            **_chosen(sandbox.annotations, self.of_pod),
            **_chosen(spec.annotations, self.of_container),
            **self.own,
        }


def _chosen(annotations: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    return {
        name: value
        for name, value in annotations.items()
        if any(_matches(pattern, name) for pattern in patterns)
    }


def _matches(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    return not name.startswith(PRIVILEGED_PREFIXES) and bool(_compiled(pattern).fullmatch(name))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    wild = {"*": "[^/]*", "?": "[^/]"}
    parts = re.split("([*?])", pattern)
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))
