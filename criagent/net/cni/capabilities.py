# SPDX-License-Identifier: Apache-2.0
"""`runtimeConfig`: capabilities that a plugin declares and the pod requests.

These are the capabilities of the CNI conventions for which the CRI has a source, passed like
containerd and CRI-O do. `ips`, `mac`, `aliases`, `infinibandGUID` and `deviceID` have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from criagent.base.errors import InvalidRequestError
from criagent.model.sandbox import Sandbox
from criagent.net import bandwidth

_BURST_BITS = (
    1 << 32
) - 1  # as containerd and CRI-O: a pod is limited over time, not at its first packets

Json = dict[str, Any]


def runtime_config(
    plugin: Json, sandbox: Sandbox, pod_cidrs: Sequence[str], *, strict: bool
) -> Json:
    """The object for `plugin`; empty when it declares nothing that the pod requests.

    Raises InvalidRequestError for unusable bandwidth annotations; without `strict` they are left
    out.
    """
    declared = plugin.get("capabilities")
    declared = declared if isinstance(declared, dict) else {}
    asked = {
        "portMappings": _port_mappings(sandbox),
        "bandwidth": _bandwidth(sandbox, strict=strict),
        "dns": _dns(sandbox),
        "cgroupPath": sandbox.spec.cgroup_parent,
        "ipRanges": [[{"subnet": cidr}] for cidr in pod_cidrs],
    }
    found = {name: value for name, value in asked.items() if value and declared.get(name) is True}
    if declared.get("io.kubernetes.cri.pod-annotations") is True:
        found["io.kubernetes.cri.pod-annotations"] = sandbox.spec.annotations
    return found


def _port_mappings(sandbox: Sandbox) -> list[Json]:
    return [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.name.lower(),
            "hostIP": mapping.host_ip,
        }
        for mapping in sandbox.spec.port_mappings
        if mapping.host_port
    ]


def _bandwidth(sandbox: Sandbox, *, strict: bool) -> Json:
    found: Json = {}
    try:
        rates = bandwidth.limits(sandbox.spec.annotations)
    except InvalidRequestError:
        if strict:
            raise
        return {}
    for direction, rate in rates.items():
        found |= {f"{direction}Rate": rate, f"{direction}Burst": _BURST_BITS}
    return found


def _dns(sandbox: Sandbox) -> Json | None:
    dns = sandbox.spec.dns
    if dns is None:
        return None
    return {
        "servers": list(dns.servers),
        "searches": list(dns.searches),
        "options": list(dns.options),
    }
