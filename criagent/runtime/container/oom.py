# SPDX-License-Identifier: Apache-2.0
"""OOM kills: the last memory.events of every live container.

With the systemd driver a scope and its files are removed before the exit is seen, so one inotify
watches them all and keeps the last values. A process that ends right after the kill takes its scope
along before the event is read; the pod's slice stays and counts the kills below it, so kills that
no other container there accounts for are those of the ended one. When several have ended at once,
each may have one of these kills, if it was killed or is the only one with a limit. A kill counts,
an `oom` event alone does not: the kernel may have found memory after all (kernel documentation,
cgroup-v2). conmon's file `oom` does not distinguish the two.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from pathlib import Path

import structlog

from criagent.kernel import cgroupfs
from criagent.kernel.inotify import IN_IGNORED, IN_MODIFY, Inotify

KILLED_CODE = 137  # 128 + SIGKILL
# man 7 inotify; the values that doctor requires.
_CURES = {
    errno.EMFILE: "sysctl -w fs.inotify.max_user_instances=512",
    errno.ENOSPC: "sysctl -w fs.inotify.max_user_watches=65536",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Slice:
    """A pod's slice. `left` of its kills belong to `heirs` that were killed, too."""

    accounted: int  # kills of ended containers, and those before the first one
    left: int = 0
    heirs: set[str] = dataclasses.field(default_factory=set)

    def settle(self, container_id: str, kills: int) -> None:
        """The container has ended with so many kills; those that no heir takes are dropped."""
        self.accounted += kills
        self.heirs.discard(container_id)
        if not self.heirs:
            self.accounted += self.left
            self.left = 0


class OomWatch:
    """One inotify for all containers; inactive where the kernel has no memory controller.

    For the event loop only: its files are counters, which the kernel returns at once.
    """

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._containers: dict[int, tuple[str, str]] = {}
        self._watches: dict[str, int] = {}
        self._kills: dict[str, int] = {}
        self._cgroups: dict[str, str] = {}
        self._limited: set[str] = set()  # those with their own memory limit
        self._slices: dict[str, _Slice] = {}

    def watch(self, container_id: str, cgroup: str) -> None:
        """Follow the container's memory.events until `forget`; a failure is only logged."""
        path = cgroupfs.directory(cgroup) / "memory.events"
        if container_id in self._watches or not path.exists():
            return
        try:
            number = self._add(path)
        except OSError as failure:
            cure = _CURES.get(failure.errno or 0, "")
            log.warning("oom_not_watched", container_id=container_id, error=str(failure), cure=cure)
            return
        self._containers[number] = (container_id, cgroup)
        self._watches[container_id] = number
        self._join_slice(container_id, cgroup)
        with cgroupfs.Reader(cgroup) as files:
            if files.number("memory.max") is not None:
                self._limited.add(container_id)

    def kills(self, container_id: str, cgroup: str, *, code: int | None = None) -> int:
        """The number of the container's processes that the kernel has killed, as far as seen.

        `code`, the exit code, helps to distinguish two containers that end at the same time.
        """
        self._readable()
        own = max(_kills_in(cgroup), self._kills.get(container_id, 0))
        name = slice_of(cgroup)
        if name in self._slices and container_id in self._cgroups:
            own = max(own, self._unaccounted(container_id, name, code))
            self._kills[container_id] = own
        return own

    def could_look(self, container_id: str, cgroup: str) -> bool:
        """Whether `kills` is complete: from the container's own file, or from its pod's slice."""
        return container_id in self._cgroups or cgroupfs.read(cgroup, "memory.events") is not None

    def forget(self, container_id: str) -> None:
        """The container was removed; `kills` has been read."""
        number = self._watches.pop(container_id, None)
        if number is not None:
            self._containers.pop(number, None)
            if self._inotify is not None:
                self._inotify.remove(number)
        kills = self._kills.pop(container_id, 0)
        self._limited.discard(container_id)
        name = slice_of(self._cgroups.pop(container_id, ""))
        if name not in self._slices:
            return
        self._slices[name].settle(container_id, kills)
        if all(slice_of(cgroup) != name for cgroup in self._cgroups.values()):
            del self._slices[name]

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None

    def _add(self, path: Path) -> int:
        if self._inotify is None:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._readable)
        return self._inotify.add(path, IN_MODIFY)

    def _readable(self) -> None:
        if self._inotify is None:
            return
        for number, mask, _ in self._inotify.events():
            if mask & IN_IGNORED or number not in self._containers:
                continue
            container_id, cgroup = self._containers[number]
            seen = self._kills.get(container_id, 0)
            self._kills[container_id] = max(seen, _kills_in(cgroup))

    def _join_slice(self, container_id: str, cgroup: str) -> None:
        name = slice_of(cgroup)
        if not name:
            return
        self._cgroups[container_id] = cgroup
        pod = self._slices.setdefault(name, _Slice(_kills_in(name)))
        # Kills before the watch, of a container that a restarted daemon adopts, are its own.
        pod.accounted -= _kills_in(cgroup)

    def _unaccounted(self, container_id: str, name: str, code: int | None) -> int:
        """Kills in the slice that neither ended containers nor other live ones account for."""
        pod = self._slices[name]
        rest = _kills_in(name) - pod.accounted
        ending = set()
        for other, cgroup in self._cgroups.items():
            if other != container_id and slice_of(cgroup) == name:
                rest -= max(_kills_in(cgroup), self._kills.get(other, 0))
                if not cgroupfs.directory(cgroup).exists():
                    ending.add(other)
        # Of several that end at once it is the one that was killed, or that had a limit to hit.
        limited = container_id in self._limited and not ending & self._limited
        if code != KILLED_CODE and not limited:
            return 0 if ending else max(rest - pod.left, 0)
        pod.heirs = {other for other in ending if not self._kills.get(other)}
        pod.left = max(min(len(pod.heirs), rest - 1), 0)
        return max(rest - pod.left, 0)


def slice_of(cgroup: str) -> str:
    """The pod's slice around a container's scope; "" when the pod has none."""
    scope, found, _ = cgroup.rpartition(".scope")
    name = scope.rpartition("/")[0] if found else ""
    return "" if name in {"", "/system.slice"} else name


def _kills_in(cgroup: str) -> int:
    return cgroupfs.flat(cgroupfs.read(cgroup, "memory.events")).get("oom_kill", 0)
