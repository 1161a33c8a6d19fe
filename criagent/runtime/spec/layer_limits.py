# SPDX-License-Identifier: Apache-2.0
"""How much a container may write to its writable layer: the node's limit, or an annotation's."""

from __future__ import annotations

import dataclasses
import re
from decimal import ROUND_CEILING, Decimal

from criagent.base.errors import InvalidRequestError
from criagent.config.storage_section import LIMIT_ANNOTATION
from criagent.model.container import ContainerSpec
from criagent.model.sandbox import SandboxSpec

_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([kMGTPE]|[KMGTPE]i)?")
_UNITS = {"": 1, "k": 10**3} | {
    unit: base**power
    for power, letter in enumerate("KMGTPE", 1)
    for unit, base in ((letter, 1000), (f"{letter}i", 1024))
    if unit != "K"
}
_MOST = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerLimits:
    """`default_bytes` (0 = none) of each container, unless an annotation says more or less.

    Annotations count if they are `allowed`. The kubelet passes annotations of pods only, so that of
    a pod is for all its containers, or with "." and a container's name for that one.
    """

    default_bytes: int
    allowed: bool

    def of(self, sandbox: SandboxSpec, spec: ContainerSpec) -> int:
        """The limit of a container in bytes, 0 = none. Raises InvalidRequestError."""
        if not self.allowed:
            return self.default_bytes
        of_pod = sandbox.annotations
        for given, name in (
            (spec.annotations, LIMIT_ANNOTATION),
            (of_pod, f"{LIMIT_ANNOTATION}.{spec.metadata.name}"),
            (of_pod, LIMIT_ANNOTATION),
        ):
            if name in given:
                return quantity(name, given[name])
        return self.default_bytes


def quantity(name: str, text: str) -> int:
    """Bytes of a Kubernetes quantity such as 512Mi, rounded up. Raises InvalidRequestError."""
    found = _QUANTITY.fullmatch(text)
    size = Decimal(found[1]) * _UNITS[found[2] or ""] if found else Decimal(0)
    if not 0 < size <= _MOST:
        raise InvalidRequestError(
            f'annotation {name[:200]}: {text[:80]!r} is not a size above zero, such as "512Mi" or '
            '"10G"'
        )
    return int(size.to_integral_value(ROUND_CEILING))
