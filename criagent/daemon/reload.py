# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration again: what can change at run time changes, all else is named.

A configuration with one wrong key changes nothing. What needs a restart is named again by each
reload until that restart.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError
from criagent.config.load import ConfigError
from criagent.config.sections import Config, Registry
from criagent.daemon.wiring.agent import Agent
from criagent.daemon.wiring.image import admission_rules, hosts_directory, proxy_settings
from criagent.telemetry import logs

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Keys that take effect without a restart, for pulls and collections that begin afterwards.
LIVE = frozenset(
    f"registry.{name}"
    for name in (
        "config_dirs docker_config max_parallel_blobs progress_timeout_s http_proxy https_proxy "
        "no_proxy pinned_images retry_retention_s signature_policy signature_policy_dir "
        "verifier_dir verifier_timeout_s"
    ).split()
) | {"telemetry.log_level"}


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Keys as "section.key": those that took effect, and those that wait for a restart."""

    changed: list[str]
    need_restart: list[str]


class Reload:
    """`read` gives the configuration as it is on disk. One reload at a time: it does not await
    between its comparison and its changes.
    """

    def __init__(self, agent: Agent, read: Callable[[], Config]) -> None:
        self._agent = agent
        self._read = read
        self._in_force = agent.shared.config

    async def __call__(self) -> Outcome:
        """Apply what changed. Raises InvalidRequestError with every problem; nothing changed."""
        try:
            config = await run_in(self._agent.shared.executors.fs, self._read)
        except ConfigError as error:
            log.error("reload_refused", problems=error.problems)  # noqa: TRY400 - its text
            raise InvalidRequestError(
                "the configuration was not reloaded, nothing changed: " + "; ".join(error.problems)
            ) from None
        found = sorted(_differences(self._in_force, config))
        outcome = Outcome(
            changed=[key for key in found if key in LIVE],
            need_restart=[key for key in found if key not in LIVE],
        )
        self._in_force = dataclasses.replace(
            self._in_force,
            registry=_with_live("registry", self._in_force.registry, config.registry),
            telemetry=_with_live("telemetry", self._in_force.telemetry, config.telemetry),
        )
        self._apply(self._in_force.registry)
        logs.set_level(self._in_force.telemetry.log_level)
        log.warning("reloaded", changed=outcome.changed, need_restart=outcome.need_restart)
        return outcome

    def _apply(self, registry: Registry) -> None:
        image = self._agent.image
        image.client.configure(
            hosts=hosts_directory(registry),
            docker_config=registry.docker_config,
            proxies=proxy_settings(registry, os.environ),
        )
        image.puller.configure(
            parallel_blobs=registry.max_parallel_blobs,
            progress_timeout_s=registry.progress_timeout_s,
            rules=admission_rules(registry),
        )
        image.images.pinned = registry.pinned_images
        image.images.collector.retention_s = registry.retry_retention_s


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(old):
        name = f"{prefix}{field.name}"
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if dataclasses.is_dataclass(before) and type(before) is type(after):
            yield from _differences(before, after, f"{name}.")
        else:
            yield name


def _with_live(section: str, old: Any, new: Any) -> Any:
    names = [field.name for field in dataclasses.fields(old) if f"{section}.{field.name}" in LIVE]
    return dataclasses.replace(old, **{name: getattr(new, name) for name in names})
