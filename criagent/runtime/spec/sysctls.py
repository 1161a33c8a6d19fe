# SPDX-License-Identifier: Apache-2.0
"""Sysctls of a pod: only those of its own namespaces, only one plain value each.

The value is written only to the file of the name, so it cannot smuggle another one in
(CVE-2022-0811); a name of a namespace shared with the host is refused (CVE-2022-0532). Those of the
UTS namespace are always refused: the hostname of a pod has its own field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.values import normalised, sysctl_namespace, sysctl_problem
from criagent.model.common import IdMapping

_PING = "net.ipv4.ping_group_range"

# A pod on the built-in network has its routes from the agent and accepts none of its neighbours'
# (CVE-2020-10749). eth0 inherits from `default`, since it is created within the pod's namespace.
_NO_ROUTES_FROM_NEIGHBOURS = {
    "ipv4": {"accept_redirects": "0", "send_redirects": "0", "accept_source_route": "0"},
    "ipv6": {"accept_ra": "0", "accept_redirects": "0"},
}
# The link-local address that anti-spoofing expects: derived from the hardware address.
_EUI64 = "net.ipv6.conf.default.addr_gen_mode"


def builtin_network_sysctls() -> dict[str, str]:
    """Values for pods on the built-in network that do not request others."""
    found: dict[str, str] = {}
    for family, switches in _NO_ROUTES_FROM_NEIGHBOURS.items():
        if os.path.exists(f"/proc/sys/net/{family}/conf"):
            for conf in ("all", "default"):
                found |= {f"net.{family}.conf.{conf}.{key}": on for key, on in switches.items()}
            if family == "ipv6":
                found[_EUI64] = "0"
    return found


def with_node_groups(sysctls: Mapping[str, str], mapping: IdMapping) -> dict[str, str]:
    """`sysctls` of a pod with mapped gids, as they are written from the node's user namespace.

    The groups that may ping are the one value that holds ids; "all" is written as more than exist.
    Raises InvalidRequestError when it is not a range of the pod's groups.
    """
    result = dict(sysctls)
    if _PING in result:
        try:
            first, last = map(int, result[_PING].split())
        except ValueError:
            raise InvalidRequestError(f"sysctl {_PING} takes two groups") from None
        if 0 <= first <= last:  # otherwise it means no group
            if first >= mapping.length:
                raise InvalidRequestError(
                    f"sysctl {_PING}: group {first} is outside the {mapping.length} ids of the "
                    "pod's user namespace"
                )
            last = min(last, mapping.length - 1)
            result[_PING] = f"{mapping.host_id + first} {mapping.host_id + last}"
    return result


def validate_sysctls(sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool) -> None:
    """Raises InvalidRequestError for a name that a pod may not set, or an unsafe value."""
    seen: set[str] = set()
    for name, value in sysctls.items():
        dotted = normalised(name)
        if problem := sysctl_problem(name, value):
            raise InvalidRequestError(problem)
        if dotted in seen:
            raise InvalidRequestError(f"sysctl {name} is given twice, with dots and with slashes")
        seen.add(dotted)
        match sysctl_namespace(name):
            case "net" if not own_network:
                raise InvalidRequestError(
                    f"sysctl {name} would change the node: the pod uses the host's network"
                )
            case "ipc" if not own_ipc:
                raise InvalidRequestError(
                    f"sysctl {name} would change the node: the pod uses the host's IPC namespace"
                )
            case "uts":
                raise InvalidRequestError(
                    f"sysctl {name} cannot be set for a pod; set its hostname instead"
                )
            case "":
                raise InvalidRequestError(f"sysctl {name} is not namespaced; set it on the node")
