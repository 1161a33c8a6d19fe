# SPDX-License-Identifier: Apache-2.0
"""What containers use: memory and disk from one sample, processor time from two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from criagent.cli.containers.calls import LIMIT_S, Calls

if TYPE_CHECKING:
    from criagent._proto import api_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one container. `cpu_percent` is of one processor; None = not known."""

    id: str
    cpu_percent: float | None
    memory_bytes: int | None
    disk_bytes: int
    inodes: int


def sample(calls: Calls) -> dict[str, api_pb2.ContainerStats]:
    """The statistics of every container that runs, by its id."""
    from criagent._proto import api_pb2

    answer = calls.runtime.ListContainerStats(api_pb2.ListContainerStatsRequest(), timeout=LIMIT_S)
    return {one.attributes.id: one for one in answer.stats}


def between(
    before: dict[str, api_pb2.ContainerStats], after: Iterable[api_pb2.ContainerStats]
) -> list[Usage]:
    """What the second sample shows; a container of the second alone has no processor time yet."""
    return [
        Usage(
            id=one.attributes.id,
            cpu_percent=_percent(before.get(one.attributes.id), one),
            memory_bytes=(
                one.memory.working_set_bytes.value
                if one.memory.HasField("working_set_bytes")
                else None
            ),
            disk_bytes=one.writable_layer.used_bytes.value,
            inodes=one.writable_layer.inodes_used.value,
        )
        for one in after
    ]


def _percent(before: api_pb2.ContainerStats | None, after: api_pb2.ContainerStats) -> float | None:
    if before is None or not after.cpu.HasField("usage_core_nano_seconds"):
        return None
    passed = after.cpu.timestamp - before.cpu.timestamp
    used = after.cpu.usage_core_nano_seconds.value - before.cpu.usage_core_nano_seconds.value
    return 100 * max(used, 0) / passed if passed > 0 else None
