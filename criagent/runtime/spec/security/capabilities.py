# SPDX-License-Identifier: Apache-2.0
"""Capability sets of a container (man 7 capabilities), from the request and the node.

Inheritable and ambient stay empty unless requested: otherwise a non-root process would keep them
over an exec (CVE-2022-24769 and similar).
"""

from __future__ import annotations

from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.values import CAPABILITIES
from criagent.model.container import ContainerSecurity

DEFAULT = frozenset(f"CAP_{name}" for name in CAPABILITIES)


def effective_capabilities(
    security: ContainerSecurity, available: frozenset[str], default: frozenset[str] = DEFAULT
) -> frozenset[str]:
    """Names that a root process of the container holds. Raises InvalidRequestError.

    In containerd's order: the defaults or, for "ALL", everything; then nothing for a drop of
    "ALL"; then named ones are added; last, named ones are dropped, so a drop always wins.
    """
    add, drop = _names(security.add_capabilities), _names(security.drop_capabilities)
    if security.privileged:
        return available
    held = set(available) if "ALL" in add else set(default)
    if "ALL" in drop:
        held = set()
    return frozenset((held | add) - drop) & available


def capability_sets(
    security: ContainerSecurity,
    available: frozenset[str],
    default: frozenset[str] = DEFAULT,
    *,
    inheritable: bool = False,
) -> dict[str, list[str]]:
    """`process.capabilities` without those that the daemon lacks, as it cannot pass them on.

    `inheritable` makes all of them that, for programs with file capabilities.

    Raises InvalidRequestError for unknown names, and for an ambient capability that the container
    does not hold: the kernel keeps the ambient set within the permitted one (man 7 capabilities).
    """
    held = effective_capabilities(security, available, default)
    asked = _names(security.add_ambient_capabilities)
    ambient = held if "ALL" in asked else asked & available
    if missing := ambient - held:
        raise InvalidRequestError(
            f"ambient capabilities {_ordered(missing)} are missing in the container's "
            "capabilities; list them in add_capabilities too"
        )
    names = _ordered(held)
    return {
        "bounding": names,
        "effective": names,
        "permitted": names,
        "inheritable": names if inheritable else _ordered(ambient),
        "ambient": _ordered(ambient),
    }


def _names(texts: tuple[str, ...]) -> set[str]:
    names = set()
    for text in texts:
        name = text.upper()
        if name != "ALL":
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in NAMES:
                raise InvalidRequestError(f"unknown capability {text[:40]!r}")
        names.add(name)
    return names


def _ordered(names: frozenset[str] | set[str]) -> list[str]:
    return [name for name in NAMES if name in names]
