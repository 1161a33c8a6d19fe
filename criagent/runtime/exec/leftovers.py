# SPDX-License-Identifier: Apache-2.0
"""Commands whose daemon died while they ran: no caller waits for them, so they are killed.

An exec's process file exists exactly while it runs (exec/plan.py). Background children of a command
that had ended have no such file and keep running.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import structlog

from criagent.model.container import Container
from criagent.runtime.exec.cgroup import kill_all
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import INNER_PID, OciRuntime

_PREFIX = "exec-"
# cAdvisor, and with it the kubelet, leaves cgroups of this ending alone, taking them for systemd's
# mount units. Others it watches as containers: a probe a second would cost it more than the probe,
# and it logs an error when one goes before its first look.
_SUFFIX = ".mount"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def exec_name() -> str:
    """A new name for an exec's process file and cgroup."""
    return f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"


async def end_leftovers(
    paths: RuntimePaths, container: Container, runtime: OciRuntime | None
) -> None:
    """Kill commands that an earlier daemon left running in a container, whose `runtime` is None if
    its handler is no longer configured.
    """
    for file in _process_files(paths.container(container.id)):
        if container.cgroup:
            await kill_all(f"{container.cgroup}/{file.stem}")
        if runtime is not None and runtime.has_own_kernel:
            await runtime.kill_inner(container.id, file.with_suffix(INNER_PID))
        file.with_suffix(".pid").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        log.info("leftover_exec_killed", container_id=container.id, exec=file.stem)


def _process_files(bundle: Path) -> list[Path]:
    # Not by Path.glob(), which compiles a pattern for each container of an agent that starts.
    try:
        names = os.listdir(bundle)
    except FileNotFoundError:
        return []
    return [bundle / name for name in names if name.startswith(_PREFIX) and name.endswith(".json")]
