# SPDX-License-Identifier: Apache-2.0
"""Resource limits in the form of the OCI runtime; pure. Cgroup v2 only."""

from __future__ import annotations

import re
from typing import Literal

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import Resources
from criagent.runtime.node.cgroup_names import NAME_MOST
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.inputs import OciObject

_CPUSET = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
# -1 is "no limit" in the OCI specification.
_LEAST = {
    "cpu_period": 0,
    "cpu_quota": -1,
    "cpu_shares": 0,
    "memory_limit_in_bytes": -1,
    "memory_swap_limit_in_bytes": -1,
}
_DEFAULT_PERIOD = 100_000  # microseconds, as the kernel's cpu.max has
_UNIFIED_KEY = re.compile(r"(memory|cpu|cpuset|io|pids|hugetlb|misc|rdma)(\.[A-Za-z0-9_]+)+")
_UNIFIED_MOST = 256  # of one container; the kernel has a few dozen
_PAGE_SIZES_MOST = 64
_CPUSET_MOST = 100 + 6 * 8192  # the longest list that the kernel needs for its maximum of CPUs
_PAGE_SIZE = re.compile(r"[0-9]{1,20}(KB|MB|GB)")


def resources_to_oci(
    resources: Resources,
    *,
    controllers: frozenset[str],
    missing: Literal["error", "ignore"] = "error",
    swap: bool = False,
) -> OciObject:
    """`linux.resources` without device rules.

    A limit whose controller is not in `controllers` raises UnsupportedError, or is left out when
    `missing` is "ignore". Raises InvalidRequestError for invalid keys and values.
    """
    _check(resources)
    gate = _Gate(controllers, missing)
    result: OciObject = {}
    cpu = _cpu(resources, gate)
    memory = _memory(resources, gate, swap=swap)
    unified = _unified(resources, gate, swap=swap)
    if swap and "limit" in memory and "swap" not in memory and "memory.swap.max" not in unified:
        memory["swap"] = memory["limit"]  # OCI counts memory plus swap: no swap, as containerd
    for key, value in (("cpu", cpu), ("memory", memory), ("unified", unified)):
        if value:
            result[key] = value
    if hugepages := _hugepages(resources, gate):
        result["hugepageLimits"] = hugepages
    return result


def default_pids(limit: int, resources: Resources, node: NodeFacts) -> OciObject:
    """`linux.resources.pids` of a container that does not ask for a limit itself.

    Raises UnsupportedError when the controller is missing and must not be.
    """
    if "pids.max" in resources.unified:
        return {}
    gate = _Gate(node.controllers, node.missing_controllers)
    text = f"runtime.defaults.pids_limit {limit}"
    return {"pids": {"limit": limit}} if gate.admits("pids", text) else {}


def _check(resources: Resources) -> None:
    for name, least in _LEAST.items():
        if (value := getattr(resources, name)) < least:
            raise InvalidRequestError(f"{name} {value} is less than {least}")
    score = resources.oom_score_adj
    if not -1000 <= score <= 1000:
        raise InvalidRequestError(f"oom_score_adj {score} is not between -1000 and 1000")
    for name in ("cpuset_cpus", "cpuset_mems"):
        text = getattr(resources, name)
        if len(text) > _CPUSET_MOST:
            raise InvalidRequestError(f"{name} is longer than {_CPUSET_MOST} characters")
        if text and not _CPUSET.fullmatch(text):
            raise InvalidRequestError(f"{name} {text[:80]!r} is not a list such as 0-3,7")


class _Gate:
    def __init__(self, controllers: frozenset[str], missing: Literal["error", "ignore"]) -> None:
        self._controllers = controllers
        self._missing = missing

    def has(self, controller: str) -> bool:
        """Whether the node has the controller."""
        return controller in self._controllers

    def admits(self, controller: str, limit: str) -> bool:
        """Whether the limit can be set; raises UnsupportedError when it must not be left out."""
        if self.has(controller):
            return True
        if self._missing == "ignore":
            return False
        raise UnsupportedError(
            f'{limit}: cgroup controller "{controller}" is not available on this node; '
            'delegate it to the agent, or set runtime.missing_controllers = "ignore" to '
            "run without limits"
        )


def _cpu(resources: Resources, gate: _Gate) -> OciObject:
    cpu: OciObject = {}
    for key, value, controller in (
        ("shares", resources.cpu_shares, "cpu"),
        ("quota", resources.cpu_quota, "cpu"),
        ("period", _period(resources), "cpu"),
        ("cpus", resources.cpuset_cpus, "cpuset"),
        ("mems", resources.cpuset_mems, "cpuset"),
    ):
        if value and gate.admits(controller, f"cpu {key} {value}"):
            cpu[key] = value
    return cpu


def _period(resources: Resources) -> int:
    """In microseconds. A quota has one: without it crun sets no limit under the systemd driver."""
    return resources.cpu_period or (_DEFAULT_PERIOD if resources.cpu_quota > 0 else 0)


def _memory(resources: Resources, gate: _Gate, *, swap: bool) -> OciObject:
    memory: OciObject = {}
    limit = resources.memory_limit_in_bytes
    if limit and gate.admits("memory", f"memory limit {limit}"):
        memory["limit"] = limit
    total = resources.memory_swap_limit_in_bytes
    if total and swap and gate.admits("memory", f"memory and swap limit {total}"):
        memory["swap"] = total
    return memory


def _unified(resources: Resources, gate: _Gate, *, swap: bool) -> OciObject:
    unified: OciObject = {}
    if len(resources.unified) > _UNIFIED_MOST:
        raise InvalidRequestError(f"more than {_UNIFIED_MOST} unified resources")
    for key, value in resources.unified.items():
        if len(key) > NAME_MOST or not _UNIFIED_KEY.fullmatch(key):
            raise InvalidRequestError(f"unified resource {key[:80]!r} is not a limit of cgroup v2")
        if not value or len(value) > 4096 or not value.isprintable():
            shown = repr(value[:80])
            raise InvalidRequestError(f"unified resource {key}: value {shown} is not a single line")
        if key.startswith("memory.swap.") and not swap:
            continue  # without swap accounting there is nothing to limit
        if gate.admits(key.partition(".")[0], f"unified resource {key}"):
            unified[key] = value
    return unified


def _hugepages(resources: Resources, gate: _Gate) -> list[OciObject]:
    limits: list[OciObject] = []
    if len(resources.hugepage_limits) > _PAGE_SIZES_MOST:
        raise InvalidRequestError(f"more than {_PAGE_SIZES_MOST} hugepage sizes")
    for item in resources.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(item.page_size):
            shown = repr(item.page_size[:80])
            raise InvalidRequestError(f"hugepage size {shown} has another form than 2MB or 1GB")
        # The kubelet sends limit 0 for every page size: without the controller, not a request.
        if not item.limit and not gate.has("hugetlb"):
            continue
        if gate.admits("hugetlb", f"hugepages-{item.page_size}"):
            limits.append({"pageSize": item.page_size, "limit": item.limit})
    return limits
