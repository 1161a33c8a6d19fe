# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration again: what can change at run time changes, all else is named.

A configuration with one wrong key changes nothing. What needs a restart is named again by each
reload until that restart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError
from criagent.config.load import ConfigError
from criagent.config.sections import Config, Registry
from criagent.daemon.wiring.agent import Agent
from criagent.daemon.wiring.image import admission_rules, client_settings
from criagent.telemetry import logs

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Keys that take effect without a restart, for pulls and collections that begin afterwards.
LIVE = frozenset(
    f"registry.{name}"
    for name in (
        "config_dirs docker_config namespaced_auth_dir credential_helper_timeout_s registries_conf "
        "max_parallel_blobs progress_timeout_s http_proxy https_proxy no_proxy pinned_images "
        "retry_retention_s signature_policy signature_policy_dir sigstore_bundles verifier_dir "
        "verifier_timeout_s"
    ).split()
) | {"telemetry.log_level"}

_HANDLERS = "runtime.handlers"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Keys as "section.key": those that took effect, and those that wait for a restart."""

    changed: list[str]
    need_restart: list[str]


class Reload:
    """`read` gives the configuration as it is on disk."""

    def __init__(self, agent: Agent, read: Callable[[], Config]) -> None:
        self._agent = agent
        self._read = read
        self._in_force = agent.shared.config
        self._one_at_a_time = asyncio.Lock()  # of a call and of SIGHUP

    async def __call__(self) -> Outcome:
        """Apply what changed. Raises InvalidRequestError with every problem; nothing changed."""
        async with self._one_at_a_time:
            return await self._reload()

    async def _reload(self) -> Outcome:
        try:
            config = await run_in(self._agent.shared.executors.fs, self._read)
        except ConfigError as error:
            raise self._refused(error.problems) from None
        live = self._agent.handlers
        handlers = live.changes(self._in_force.runtime.handlers, config.runtime.handlers)
        try:
            programs = await live.read(handlers.wanted)
        except InvalidRequestError as error:
            raise self._refused([str(error)]) from None
        # Nothing is awaited from here on.
        found = sorted(_differences(self._in_force, config))
        at_once = LIVE.union(_handler_keys({*handlers.wanted, *handlers.removed}))
        outcome = Outcome(
            changed=[key for key in found if key in at_once],
            need_restart=[key for key in found if key not in at_once],
        )
        kept = {
            name: handler
            for name, handler in self._in_force.runtime.handlers.items()
            if name not in handlers.removed
        }
        self._in_force = dataclasses.replace(
            self._in_force,
            runtime=dataclasses.replace(
                self._in_force.runtime, handlers={**kept, **handlers.wanted}
            ),
            registry=_with_live("registry", self._in_force.registry, config.registry),
            telemetry=_with_live("telemetry", self._in_force.telemetry, config.telemetry),
        )
        live.apply(programs, handlers.removed)
        self._apply(self._in_force.registry)
        logs.set_level(self._in_force.telemetry.log_level)
        log.warning("reloaded", changed=outcome.changed, need_restart=outcome.need_restart)
        return outcome

    def _refused(self, problems: Sequence[object]) -> InvalidRequestError:
        log.error("reload_refused", problems=problems)
        texts = "; ".join(map(str, problems))
        return InvalidRequestError(f"the configuration was not reloaded, nothing changed: {texts}")

    def _apply(self, registry: Registry) -> None:
        image = self._agent.image
        image.client.configure(client_settings(registry, os.environ))
        image.puller.configure(
            parallel_blobs=registry.max_parallel_blobs,
            progress_timeout_s=registry.progress_timeout_s,
            rules=admission_rules(registry),
        )
        image.images.pinned = registry.pinned_images
        image.images.collector.retention_s = registry.retry_retention_s


def _handler_keys(names: Iterable[str]) -> set[str]:
    return {f"{_HANDLERS}.{name}" for name in names}


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(old):
        name = f"{prefix}{field.name}"
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if name == _HANDLERS:
            changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
            yield from _handler_keys(changed)
        elif dataclasses.is_dataclass(before) and type(before) is type(after):
            yield from _differences(before, after, f"{name}.")
        else:
            yield name


def _with_live(section: str, old: Any, new: Any) -> Any:
    names = [field.name for field in dataclasses.fields(old) if f"{section}.{field.name}" in LIVE]
    return dataclasses.replace(old, **{name: getattr(new, name) for name in names})
