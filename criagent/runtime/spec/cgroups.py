"""Cgroup names and limits for the OCI runtime; pure. Cgroup v2 only."""

from __future__ import annotations

import enum
import re
from typing import Literal

from criagent.base.errors import InvalidRequestError, UnsupportedError, WrongStateError
from criagent.model import Resources
from criagent.runtime.spec.inputs import OciObject

SCOPE_PREFIX = "cri"  # scope "cri-<id>.scope": cAdvisor takes the id after the last dash
DEFAULT_PARENT = "/cri"  # of pods without a cgroup_parent, under the cgroupfs driver
_DEFAULT_SLICE = "system.slice"
_SLICE = re.compile(r"[A-Za-z0-9_.:\\@]+(-[A-Za-z0-9_.:\\@]+)*\.slice")
_PARENT = re.compile(r"/?[A-Za-z0-9_.:@\\-]+(/[A-Za-z0-9_.:@\\-]+)*/?")
_CPUSET = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
# -1 is "no limit" in the OCI specification.
_LEAST = {
    "cpu_period": 0,
    "cpu_quota": -1,
    "cpu_shares": 0,
    "memory_limit_in_bytes": -1,
    "memory_swap_limit_in_bytes": -1,
}
_UNIFIED_KEY = re.compile(r"(memory|cpu|cpuset|io|pids|hugetlb|misc|rdma)(\.[A-Za-z0-9_]+)+")
_UNIFIED_MOST = 256  # of one container; the kernel has some dozens
_NAME_MOST = 255
_SHOWN = 512  # characters of a path in an error
_PAGE_SIZES_MOST = 64
_CPUSET_MOST = 100 + 6 * 8192  # what the kernel takes with the most CPUs that it can have
_PAGE_SIZE = re.compile(r"[0-9]{1,20}(KB|MB|GB)")


class CgroupDriver(enum.StrEnum):
    """Who makes the cgroup of a container."""

    SYSTEMD = "systemd"
    CGROUPFS = "cgroupfs"


def container_cgroups_path(driver: CgroupDriver, parent: str, object_id: str) -> str:
    """`linux.cgroupsPath` of a container (or holder) in the pod cgroup `parent`.

    Raises InvalidRequestError when `parent` is no name of that driver.
    """
    if driver is CgroupDriver.SYSTEMD:
        return f"{_slice_name(parent)}:{SCOPE_PREFIX}:{object_id}"
    return f"{_pod_path(parent)}/{object_id}"


def container_cgroup(driver: CgroupDriver, parent: str, object_id: str) -> str:
    """The directory below /sys/fs/cgroup that belongs to that `cgroupsPath`.

    Init may live in a child of it: crun makes `container` inside a systemd scope, runc does not.
    """
    if driver is CgroupDriver.SYSTEMD:
        return f"{pod_cgroup(driver, parent)}/{SCOPE_PREFIX}-{object_id}.scope"
    return f"{_pod_path(parent)}/{object_id}"


def pod_cgroup(driver: CgroupDriver, parent: str) -> str:
    """The directory below /sys/fs/cgroup of the pod cgroup `parent`."""
    if driver is CgroupDriver.CGROUPFS:
        return _pod_path(parent)
    parts = _slice_name(parent).removesuffix(".slice").split("-")
    # man 5 systemd.slice: a-b.slice lies in a.slice.
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def lies_in(cgroup: str, top: str) -> bool:
    """Whether `cgroup`, as /proc/PID/cgroup shows it, is `top` or below it."""
    parts, wanted = cgroup.strip("/").split("/"), top.strip("/").split("/")
    return bool(wanted[0]) and ".." not in parts and parts[: len(wanted)] == wanted


def belongs_to(cgroup: str, object_id: str) -> bool:
    """Whether `cgroup`, or one above it, carries the name that the agent gives to the cgroup of
    that container or holder, under whatever driver and parent. Only such a one may be killed.
    """
    names = {object_id, f"{SCOPE_PREFIX}-{object_id}.scope"}
    parts = cgroup.split("/")
    return bool(object_id) and ".." not in parts and not names.isdisjoint(parts)


def check_placement(cgroup: str, asked: str, handler: str) -> None:
    """Raises WrongStateError unless a first process that is in `cgroup` is where it was `asked`
    to be. What is elsewhere could be neither limited nor counted, and killing its cgroup would
    kill whatever else lives there.
    """
    if not lies_in(cgroup, asked):
        raise WrongStateError(
            f'handler "{handler}" put the first process into cgroup {cgroup[:_SHOWN]}, not into '
            f"{asked[:_SHOWN]} or below it; make the program of runtime.handlers.{handler} honour "
            "linux.cgroupsPath (crun: no --cgroup-manager=disabled, runsc: no --ignore-cgroups)"
        )


def validate_cgroup_parent(parent: str) -> None:
    """Raises InvalidRequestError unless `parent` is empty or a plain path."""
    if parent and (not _PARENT.fullmatch(parent) or {".", ".."} & set(parent.split("/"))):
        raise InvalidRequestError(f"cgroup_parent {parent!r} is not a plain cgroup path")


def resources_to_oci(
    resources: Resources,
    *,
    controllers: frozenset[str],
    missing: Literal["error", "ignore"] = "error",
    swap: bool = False,
) -> OciObject:
    """`linux.resources` without device rules.

    A limit whose controller is not in `controllers` raises UnsupportedError, or is left out when
    `missing` is "ignore". Raises InvalidRequestError for keys and values that are no limits.
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


def _check(resources: Resources) -> None:
    for name, least in _LEAST.items():
        if (value := getattr(resources, name)) < least:
            raise InvalidRequestError(f"{name} {value} is below {least}")
    score = resources.oom_score_adj
    if not -1000 <= score <= 1000:
        raise InvalidRequestError(f"oom_score_adj {score} is not within -1000..1000")
    for name in ("cpuset_cpus", "cpuset_mems"):
        text = getattr(resources, name)
        if len(text) > _CPUSET_MOST:
            raise InvalidRequestError(f"{name} has over {_CPUSET_MOST} characters")
        if text and not _CPUSET.fullmatch(text):
            raise InvalidRequestError(f"{name} {text[:80]!r} is no list such as 0-3,7")


class _Gate:
    def __init__(self, controllers: frozenset[str], missing: Literal["error", "ignore"]) -> None:
        self._controllers = controllers
        self._missing = missing

    def has(self, controller: str) -> bool:
        """Whether the node has it."""
        return controller in self._controllers

    def admits(self, controller: str, limit: str) -> bool:
        """Whether the limit can be set; raises UnsupportedError when it may not be left out."""
        if self.has(controller):
            return True
        if self._missing == "ignore":
            return False
        raise UnsupportedError(
            f'{limit}: cgroup controller "{controller}" is not available on this node; delegate '
            'it to the agent, or set runtime.missing_controllers = "ignore" to run without limits'
        )


def _cpu(resources: Resources, gate: _Gate) -> OciObject:
    cpu: OciObject = {}
    for key, value, controller in (
        ("shares", resources.cpu_shares, "cpu"),
        ("quota", resources.cpu_quota, "cpu"),
        ("period", resources.cpu_period, "cpu"),
        ("cpus", resources.cpuset_cpus, "cpuset"),
        ("mems", resources.cpuset_mems, "cpuset"),
    ):
        if value and gate.admits(controller, f"cpu {key} {value}"):
            cpu[key] = value
    return cpu


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
        raise InvalidRequestError(f"over {_UNIFIED_MOST} unified resources")
    for key, value in resources.unified.items():
        if len(key) > _NAME_MOST or not _UNIFIED_KEY.fullmatch(key):
            raise InvalidRequestError(f"unified resource {key[:80]!r} is not a limit of cgroup v2")
        if not value or len(value) > 4096 or not value.isprintable():
            shown = repr(value[:80])
            raise InvalidRequestError(f"unified resource {key}: value {shown} is not one line")
        if key.startswith("memory.swap.") and not swap:
            continue  # no swap accounting: there is nothing to limit
        if gate.admits(key.partition(".")[0], f"unified resource {key}"):
            unified[key] = value
    return unified


def _hugepages(resources: Resources, gate: _Gate) -> list[OciObject]:
    limits: list[OciObject] = []
    if len(resources.hugepage_limits) > _PAGE_SIZES_MOST:
        raise InvalidRequestError(f"over {_PAGE_SIZES_MOST} hugepage sizes")
    for item in resources.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(item.page_size):
            shown = repr(item.page_size[:80])
            raise InvalidRequestError(f"hugepage size {shown} is not like 2MB or 1GB")
        # The kubelet names every page size, 0 = none: without a controller that is no request.
        if not item.limit and not gate.has("hugetlb"):
            continue
        if gate.admits("hugetlb", f"hugepages-{item.page_size}"):
            limits.append({"pageSize": item.page_size, "limit": item.limit})
    return limits


def _slice_name(parent: str) -> str:
    validate_cgroup_parent(parent)
    name = parent.rstrip("/").rpartition("/")[2] or _DEFAULT_SLICE
    if not _SLICE.fullmatch(name):
        raise InvalidRequestError(
            f"cgroup_parent {parent!r}: the systemd driver needs the name of a slice "
            "(the kubelet's cgroupDriver must be systemd as well)"
        )
    return name


def _pod_path(parent: str) -> str:
    validate_cgroup_parent(parent)
    path = parent.strip("/")
    return f"/{path}" if path else DEFAULT_PARENT
