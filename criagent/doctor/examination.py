# SPDX-License-Identifier: Apache-2.0
"""All topics, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from criagent.config.sections import Config
from criagent.doctor import (
    cgroups,
    checkpoints,
    defaults,
    devices,
    limits,
    metrics,
    neighbours,
    network,
    nri,
    profiles,
    programs,
    registries,
    security,
    storage,
    storage_pools,
    system,
    unit,
)
from criagent.doctor.finding import Finding


def examine(config: Config, *, of_metrics: metrics.MetricsFacts | None = None) -> list[Finding]:
    """Every finding, in a fixed order. Runs `--version` of programs; changes nothing.

    The address of the metrics is not asked by who gives what is known `of_metrics`.
    """
    return list(_all(config, of_metrics))


def _all(config: Config, of_metrics: metrics.MetricsFacts | None) -> Iterator[Finding]:
    yield from system.judge(system.read(config))
    yield from cgroups.judge(cgroups.read(), config)
    yield from storage.judge(storage.read(config), config)
    yield from storage_pools.judge(storage_pools.read(config), config)
    yield from programs.judge(programs.read(config), config)
    yield from checkpoints.judge(checkpoints.read(), config)
    yield from network.judge(network.read(config), config)
    yield from devices.judge(devices.read(config))
    yield from defaults.judge(defaults.read(config), config)
    yield from security.judge(security.read())
    yield from profiles.judge(profiles.read(config))
    yield from limits.judge(limits.read(), config)
    yield from unit.judge(unit.read())
    yield from metrics.judge(of_metrics or metrics.read(config), config)
    yield from neighbours.judge(neighbours.read(), config)
    yield from nri.judge(nri.read(config), config)
    yield from registries.judge(registries.read(config), config)
