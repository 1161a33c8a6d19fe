# SPDX-License-Identifier: Apache-2.0
"""Names of cgroups under either driver, and owners of cgroups. Pure. Cgroup v2 only."""

from __future__ import annotations

import enum
import re

from criagent.base.errors import InvalidRequestError, WrongStateError

SCOPE_PREFIX = "cri"  # scope "cri-<id>.scope": cAdvisor takes the id after the last dash


DEFAULT_PARENT = "/cri"  # of pods without a cgroup_parent, under the cgroupfs driver


_DEFAULT_SLICE = "system.slice"


_SLICE = re.compile(r"[A-Za-z0-9_.:\\@]+(-[A-Za-z0-9_.:\\@]+)*\.slice")


_PARENT = re.compile(r"/?[A-Za-z0-9_.:@\\-]+(/[A-Za-z0-9_.:@\\-]+)*/?")


NAME_MOST = 255


_SHOWN = 512  # characters of a path in an error


class CgroupDriver(enum.StrEnum):
    """The program that creates the cgroup of a container."""

    SYSTEMD = "systemd"
    CGROUPFS = "cgroupfs"


def container_cgroups_path(driver: CgroupDriver, parent: str, object_id: str) -> str:
    """`linux.cgroupsPath` of a container (or holder) in the pod cgroup `parent`.

    Raises InvalidRequestError when `parent` is not a name of that driver.
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
    """Whether `cgroup`, or one above it, has the name that the agent gives to the cgroup of that
    container or holder, under any driver and parent. Only such a cgroup may be killed.
    """
    names = {object_id, f"{SCOPE_PREFIX}-{object_id}.scope"}
    parts = cgroup.split("/")
    return bool(object_id) and ".." not in parts and not names.isdisjoint(parts)


def check_placement(cgroup: str, asked: str, handler: str) -> None:
    """Raises WrongStateError unless a first process that is in `cgroup` is where it was `asked` to
    be.

    A process elsewhere could be neither limited nor counted, and killing its cgroup would kill
    whatever else lives there.
    """
    if not lies_in(cgroup, asked):
        raise WrongStateError(
            f'handler "{handler}" put the first process into cgroup {cgroup[:_SHOWN]}, '
            f"which is not {asked[:_SHOWN]} or below it; make the program of "
            f"runtime.handlers.{handler} honour linux.cgroupsPath (crun: no "
            "--cgroup-manager=disabled, runsc: no --ignore-cgroups)"
        )


def validate_cgroup_parent(parent: str) -> None:
    """Raises InvalidRequestError unless `parent` is empty or a plain path."""
    if parent and (not _PARENT.fullmatch(parent) or {".", ".."} & set(parent.split("/"))):
        raise InvalidRequestError(f"cgroup_parent {parent!r} is not a plain cgroup path")


def _slice_name(parent: str) -> str:
    validate_cgroup_parent(parent)
    name = parent.rstrip("/").rpartition("/")[2] or _DEFAULT_SLICE
    if not _SLICE.fullmatch(name):
        raise InvalidRequestError(
            f"cgroup_parent {parent!r}: the systemd driver requires the name of a slice; set "
            "cgroupDriver: systemd in the kubelet's configuration"
        )
    return name


def _pod_path(parent: str) -> str:
    validate_cgroup_parent(parent)
    path = parent.strip("/")
    return f"/{path}" if path else DEFAULT_PARENT
