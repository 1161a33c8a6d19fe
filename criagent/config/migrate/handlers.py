# SPDX-License-Identifier: Apache-2.0
"""Runtimes of other programs as handlers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.config.migrate.defaults import of_handler
from criagent.config.migrate.migration import Migration, Where
from criagent.config.runtime_section import default_handlers

TYPES = ("crun", "runc", "runsc")
_SAME = (  # keys of containerd that have the same name and values
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
    "pod_annotations",
    "container_annotations",
    "cni_conf_dir",
)
_WRAPPERS = {"nvidia-container-runtime": "runc"}  # programs that call another one
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def handler(
    migration: Migration, where: Where, name: str, program: str, entry: Mapping[str, Any]
) -> None:
    """Take a runtime as the handler `name`; `program` is its name or path, `entry` its other keys.

    A name is looked up as the program's own users would; one that is not installed is taken where
    distributions install it, since the file may be meant for another node.
    """
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        migration.left(where, "a RuntimeClass cannot use the name")
        return
    path = Path(program if program.startswith("/") else _found(program))
    kind = next((kind for kind in TYPES if kind in path.name), _WRAPPERS.get(path.name, ""))
    if not kind:
        migration.left(where, f"{program}: is not one of the runtime types {', '.join(TYPES)}")
        return
    taken: dict[str, object] = {"path": str(path), "type": kind}
    taken |= {key: entry[key] for key in _SAME if entry.get(key)}
    if entry.get("monitor_exec_cgroup") == "container":
        taken["exec_cgroup"] = "container"
    taken |= of_handler(migration, where, entry)
    migration.take(where, f"runtime.handlers.{name}", taken)


def _found(program: str) -> str:
    default = default_handlers().get(program)
    found = shutil.which(program, path=_PATH)
    return found or (str(default.path) if default else f"/usr/bin/{program}")
