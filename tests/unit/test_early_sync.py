# SPDX-License-Identifier: Apache-2.0
"""Layers go to disk while they are written: when a sync begins, and what a failure means."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from criagent.base.aio import alongside
from criagent.image.early_sync import EarlySync
from criagent.kernel import write_back
from criagent.kernel.write_back import WriteBack

MIB = 1 << 20


class _Snapshots:
    """Syncs in the loop's thread and counts how often."""

    def __init__(self) -> None:
        self.syncs = 0
        self.called = asyncio.Event()

    async def sync(self, written: WriteBack) -> None:
        self.syncs += 1
        self.called.set()
        written.sync()


@pytest.fixture
def written(tmp_path: Path) -> WriteBack:
    opened = WriteBack(tmp_path)
    opened.open()
    return opened


def early(snapshots: _Snapshots, written: WriteBack, received: Callable[[int], None]) -> EarlySync:
    return EarlySync(cast(Any, snapshots), written, received)


async def test_each_piece_is_synced_and_every_size_is_passed_on(written: WriteBack) -> None:
    snapshots, sizes = _Snapshots(), list[int]()
    syncing = early(snapshots, written, sizes.append)
    async with alongside(syncing.until_failure()):
        for _ in range(31):
            syncing.received(MIB)
        await asyncio.sleep(0)
        assert snapshots.syncs == 0
        for _ in range(2):
            snapshots.called.clear()
            syncing.received(MIB)
            await snapshots.called.wait()
            for _ in range(31):
                syncing.received(MIB)
    assert snapshots.syncs == 2
    assert sizes == [MIB] * 95
    written.close()


async def test_a_failure_ends_it_and_fails_every_later_sync(
    written: WriteBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "syncfs: Input/output error")

    snapshots = _Snapshots()
    syncing = early(snapshots, written, lambda _: None)
    with monkeypatch.context() as patched:
        patched.setattr(write_back, "check", fail)
        syncing.received(40 * MIB)
        await syncing.until_failure()
    assert written.failed
    with pytest.raises(OSError, match="Input/output error"):
        written.sync()
    assert snapshots.syncs == 1
    written.close()
