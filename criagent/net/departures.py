# SPDX-License-Identifier: Apache-2.0
"""Links of pods that have ended, from the end of the pod until the kernel has removed them.

The kernel removes the veth pair of a network namespace that nobody uses any longer by itself, many
at once and after the namespace's last user has gone. To delete one by hand takes 25 ms, one after
the other. Until its link is gone a pod keeps its addresses and its anti-spoofing rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from criagent.base.aio import Background
from criagent.base.errors import AgentError
from criagent.kernel import netlink
from criagent.kernel.link_events import LinkEvents

_PATIENCE_S = 1.0  # with a namespace that another process holds, and with a disk that is full

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Departures:
    """Waits for the removal of links; everything runs in the event loop's thread.

    `released` is called with the sandboxes whose links are gone, many at once, and again if it
    fails. `delete` deletes links of these names that the kernel did not remove in time.
    """

    def __init__(
        self,
        released: Callable[[Sequence[str]], Awaitable[None]],
        delete: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._released = released
        self._delete = delete
        self._leaving: dict[str, tuple[str, float]] = {}  # link: sandbox, end of the patience
        self._gone: list[str] = []  # sandboxes
        self._work = Background("departures")
        self._freed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._events: LinkEvents | None = None

    @property
    def pending(self) -> bool:
        """Whether a pod that has ended still holds addresses."""
        return bool(self._leaving or self._gone)

    def holds(self, sandbox_id: str) -> bool:
        """Whether that pod has ended and still holds its addresses."""
        leaving = (owner for owner, _ in self._leaving.values())
        return sandbox_id in self._gone or sandbox_id in leaving

    def watch(self) -> None:
        """Receive removals from now on."""
        self._events = LinkEvents()
        asyncio.get_running_loop().add_reader(self._events, self._changed)

    async def stop(self) -> None:
        """Stop waiting; the next start removes what is left."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
            self._events = None
        if self._timer is not None:
            self._timer.cancel()
        await self._work.stop()

    def add(self, link: str, sandbox_id: str) -> bool:
        """Release the sandbox once `link` is gone; False when there is no such link (any longer).

        The caller drops the network namespace afterwards.
        """
        loop = asyncio.get_running_loop()
        self._leaving[link] = sandbox_id, loop.time() + _PATIENCE_S
        if netlink.index_of(link) is None:
            del self._leaving[link]
            return False
        self._look_later()
        return True

    async def wait(self) -> bool:
        """Return when a pod that had ended has given its addresses back; False if there is none."""
        if not self.pending:
            return False
        self._freed.clear()
        await self._freed.wait()
        return True

    def _changed(self) -> None:
        if self._events is None:
            return
        removed = self._events.removed()
        self._remember(self._vanished() if removed is None else removed)

    def _vanished(self) -> set[str]:
        return {link for link in self._leaving if netlink.index_of(link) is None}

    def _remember(self, removed: set[str]) -> None:
        for link in removed & self._leaving.keys():
            self._gone.append(self._leaving.pop(link)[0])
        if self._gone:
            self._work.start(self._run)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._remember(self._vanished())
        if self.pending:
            self._work.start(self._run)
            self._look_later()

    async def _run(self) -> None:
        """Release what is gone, delete what is late, until there is neither."""
        while True:
            now = asyncio.get_running_loop().time()
            late = [link for link, (_, limit) in self._leaving.items() if limit <= now]
            try:
                if self._gone:
                    gone = list(self._gone)
                    await self._released(gone)
                    del self._gone[: len(gone)]
                    self._freed.set()
                elif late:
                    for link in late:
                        sandbox_id = self._leaving[link][0]
                        self._leaving[link] = sandbox_id, now + _PATIENCE_S
                        log.info("link_outlived_pod", sandbox_id=sandbox_id, link=link)
                    await self._delete(late)
                else:
                    return
            except (AgentError, OSError) as exc:
                log.warning("addresses_not_released", error=str(exc), again_in_s=_PATIENCE_S)
                self._look_later()
                return
