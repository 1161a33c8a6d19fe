# SPDX-License-Identifier: Apache-2.0
"""All topics, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from criagent.config.sections import Config
from criagent.doctor import (
    cgroups,
    checkpoints,
    devices,
    limits,
    neighbours,
    network,
    nri,
    programs,
    security,
    storage,
    storage_pools,
    system,
    unit,
)
from criagent.doctor.finding import Finding


def examine(config: Config) -> list[Finding]:
    """Every finding, in a fixed order. Runs `--version` of programs; changes nothing."""
    return list(_all(config))


def _all(config: Config) -> Iterator[Finding]:
    yield from system.judge(system.read(config))
    yield from cgroups.judge(cgroups.read(), config)
    yield from storage.judge(storage.read(config), config)
    yield from storage_pools.judge(storage_pools.read(config), config)
    yield from programs.judge(programs.read(config), config)
    yield from checkpoints.judge(checkpoints.read(), config)
    yield from network.judge(network.read(config), config)
    yield from devices.judge(devices.read(config))
    yield from security.judge(security.read())
    yield from limits.judge(limits.read(), config)
    yield from unit.judge(unit.read())
    yield from neighbours.judge(neighbours.read(), config)
    yield from nri.judge(nri.read(config), config)
