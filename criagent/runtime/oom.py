"""Who was killed for want of memory: the last memory.events of every live container.

With the systemd driver a scope and its files are gone when the exit is seen, so one inotify watches
them all and keeps the last values. A kill counts, an `oom` event alone does not: the kernel may
have found memory after all (kernel documentation, cgroup-v2).
"""

from __future__ import annotations

import asyncio

from criagent.kernel import cgroupfs
from criagent.kernel.inotify import IN_IGNORED, IN_MODIFY, Inotify


class OomWatch:
    """One inotify for all containers; nothing where the kernel has no memory controller."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._containers: dict[int, tuple[str, str]] = {}
        self._watches: dict[str, int] = {}
        self._kills: dict[str, int] = {}

    def watch(self, container_id: str, cgroup: str) -> None:
        """Follow the container's memory.events until `forget`."""
        path = cgroupfs.directory(cgroup) / "memory.events"
        if container_id in self._watches or not path.exists():
            return
        if self._inotify is None:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._readable)
        number = self._inotify.add(path, IN_MODIFY)
        self._containers[number] = (container_id, cgroup)
        self._watches[container_id] = number

    def kills(self, container_id: str, cgroup: str) -> int:
        """How many processes of the container the kernel has killed, as far as was seen."""
        self._readable()
        events = cgroupfs.flat(cgroupfs.read(cgroup, "memory.events"))
        return max(events.get("oom_kill", 0), self._kills.get(container_id, 0))

    def forget(self, container_id: str) -> None:
        """The container is gone."""
        number = self._watches.pop(container_id, None)
        if number is not None:
            self._containers.pop(number, None)
            if self._inotify is not None:
                self._inotify.remove(number)
        self._kills.pop(container_id, None)

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None

    def _readable(self) -> None:
        if self._inotify is None:
            return
        for number, mask, _ in self._inotify.events():
            if mask & IN_IGNORED or number not in self._containers:
                continue
            container_id, cgroup = self._containers[number]
            events = cgroupfs.flat(cgroupfs.read(cgroup, "memory.events"))
            seen = self._kills.get(container_id, 0)
            self._kills[container_id] = max(seen, events.get("oom_kill", 0))
