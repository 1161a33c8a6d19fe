# SPDX-License-Identifier: Apache-2.0
"""The agent's nftables tables in the kernel: written whole, changed, and restored when deleted.

Deletions by other programs are distinguished from our own by the generation of the ruleset
(docs/adr/0007).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from criagent.base.aio import Background, run_in
from criagent.base.errors import AgentError
from criagent.kernel import nft_events
from criagent.kernel.nftables import Nftables
from criagent.net import antispoof, rules

_PAUSE_S = 0.1  # minimum interval between restorations of deleted rules

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RuleKeeper:
    """Keeps the kernel's tables equal to `contents()`, which is called in the network thread.

    `write` and `change` are called in the network thread, the rest in the event loop's.
    """

    def __init__(
        self, net: Executor, contents: Callable[[], rules.Contents], *, anti_spoofing: bool
    ) -> None:
        self._net = net
        self._contents = contents
        self._anti_spoofing = anti_spoofing
        self._nft: Nftables | None = None
        self._events: nft_events.NftEvents | None = None
        self._repair = Background("nftables")
        # Generations of the ruleset: at the last whole write, at the last deletion from the tables.
        self._written = 0
        self._deleted = 0
        self.failure = ""  # why the rules are not in force
        self.open_to_spoofing = ""  # why pods can use addresses of others although they should not

    @property
    def started(self) -> bool:
        """Whether the tables are kept."""
        return self._nft is not None

    @property
    def prevents_spoofing(self) -> bool:
        """Whether the second table is required and in force."""
        return self._anti_spoofing and not self.open_to_spoofing

    def watch(self) -> None:
        """Watch for deletions from now on; the tables are written afterwards."""
        self._events = nft_events.NftEvents()
        asyncio.get_running_loop().add_reader(self._events, self._changed)

    async def stop(self) -> None:
        """Stop watching the tables; they stay."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
            self._events = None
        await self._repair.stop()

    # In the network thread.

    def write(self) -> None:
        """Replace the tables by `contents()`, both or none.

        A kernel that cannot filter on bridges gets the first table only, and `open_to_spoofing`
        says so. Raises AgentError with nft's message, UnsupportedError without libnftables.
        """
        if self._nft is None:
            self._nft = Nftables()
        before = self._written
        # If another program commits in between, ours is later, and is taken for a deletion.
        self._written = nft_events.generation() + 1
        try:
            problem = self._replace(self._nft)
        except BaseException:
            self._written = before
            raise
        if problem and problem != self.open_to_spoofing:
            log.warning("spoofing_not_prevented", problem=problem)
        self.open_to_spoofing = problem

    def change(self, commands: str) -> None:
        """Apply `commands`; if a table is missing, write everything as it is now."""
        if self._nft is None:
            raise RuntimeError("rules before start")
        try:
            self._nft.run(commands)
        except AgentError:
            there = rules.present(self._nft.run("list tables"))
            complete = there == list(rules.TABLES) or (there and not self.prevents_spoofing)
            if complete:
                raise
            self.write()

    @staticmethod
    def remove() -> None:
        """Delete the tables, if there are any, without having started."""
        with contextlib.closing(Nftables()) as nft:
            nft.run(rules.clearance(*rules.present(nft.run("list tables"))))

    def _replace(self, nft: Nftables) -> str:
        """Why the second table was left out; "" = it was written, or is not required."""
        contents = self._contents()
        first = rules.replacement(contents, anti_spoofing=False)
        if not self._anti_spoofing:
            there = rules.present(nft.run("list tables"))
            nft.run(first + rules.clearance(*(t for t in there if t == antispoof.TABLE)))
            return ""
        try:
            nft.run(rules.replacement(contents, anti_spoofing=True))
        except AgentError as exc:
            nft.run(first)
            return str(exc)
        return ""

    # In the event loop's thread.

    def _changed(self) -> None:
        """A program changed rules; when ours were deleted, restore them."""
        if self._damaged():
            self._repair.start(self._restore)

    def _damaged(self) -> bool:
        """Whether our rules were deleted after the last whole write."""
        if self._events is not None:
            deleted = self._events.deletions(rules.NAME)
            self._deleted = max(self._deleted, self._written + 1 if deleted is None else deleted)
        return self._deleted > self._written

    async def _restore(self) -> None:
        """Write the tables until no program deletes from them afterwards.

        While that fails, the condition says so.
        """
        while self._damaged():
            try:
                await run_in(self._net, self.write)
            except (AgentError, OSError) as exc:
                self.failure = f"the nftables rules were deleted and cannot be restored: {exc}"
                log.warning("rules_not_restored", error=str(exc))
            else:
                self.failure = ""
                log.warning("rules_restored", tables=list(rules.TABLES))
            # A program that deletes rules often does so several times.
            await asyncio.sleep(_PAUSE_S)
