# SPDX-License-Identifier: Apache-2.0
"""Kills and removes cgroups: only those that have the name of their container or holder.

A row of an older version may name whatever cgroup a runtime had put init into, even the daemon's
own. Synchronous.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from criagent.kernel import cgroupfs
from criagent.runtime.node.cgroup_names import belongs_to

_LIMIT_S, _LOOK_S = 2.0, 0.002

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def within(cgroup: str, argv: Sequence[str | Path]) -> list[str | Path]:
    """The command `argv`, which enters `cgroup` before its first instruction."""
    processes = cgroupfs.directory(cgroup) / "cgroup.procs"
    return ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', processes, *argv]


def kill(cgroup: str, object_id: str) -> None:
    """SIGKILL to everything in `cgroup` and below, if it belongs to that container or holder."""
    if _is_own(cgroup, object_id):
        cgroupfs.kill(cgroup)


def remove(cgroup: str, object_id: str) -> bool:
    """Remove it if it belongs to that container or holder; False while processes are in there."""
    return not _is_own(cgroup, object_id) or cgroupfs.remove(cgroup)


def end(cgroup: str, object_id: str) -> None:
    """Kill what lives in it and remove it, if it belongs to that container or holder.

    Killed processes take a moment to leave it, and one that a runtime was starting may enter it
    even now, which no event of a cgroup tells, so it is tried again for a while.
    """
    if not _is_own(cgroup, object_id):
        return
    limit = time.monotonic() + _LIMIT_S
    while True:
        cgroupfs.kill(cgroup)
        if cgroupfs.remove(cgroup):
            return
        if time.monotonic() > limit:
            log.warning("cgroup_not_removed", id=object_id, cgroup=cgroup)
            return
        time.sleep(_LOOK_S)


def _is_own(cgroup: str, object_id: str) -> bool:
    if not cgroup:
        return False
    if belongs_to(cgroup, object_id):
        return True
    log.warning("foreign_cgroup_ignored", id=object_id, cgroup=cgroup)
    return False
