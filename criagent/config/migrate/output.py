# SPDX-License-Identifier: Apache-2.0
"""What a migration writes: a drop-in of the configuration, and hosts.toml for each registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from criagent.config.migrate.migration import Migration
from criagent.config.text import toml

DROP_IN = "config.d/50-migrated.toml"
_HEAD = "# Written by `criagent config migrate`; every value names the key that it comes from.\n"


def outputs(migration: Migration) -> dict[str, str]:
    """The text of each file by its path below the directory of the configuration."""
    files = {}
    if changed := migration.changed():
        files[DROP_IN] = _drop_in(migration, changed)
    for hosts in migration.registries.values():
        files[f"certs.d/{hosts.directory()}/hosts.toml"] = hosts.text()
    return files


def _drop_in(migration: Migration, changed: Mapping[str, object]) -> str:
    sections: dict[str, list[str]] = {}
    for key, value in changed.items():
        section, name = _split(key)
        lines = sections.setdefault(section, [])
        lines += [f"# {migration.origins[key]}", f"{name} = {toml(value)}"]
    parts = [_HEAD]
    for section, lines in sections.items():
        parts += [f"[{section}]", *lines, ""]
    return "\n".join(parts)


def _split(key: str) -> tuple[str, str]:
    """Section and key; a handler or a workload is a key of the section runtime."""
    if key.startswith(("runtime.handlers.", "runtime.workloads.")):
        return "runtime", key.removeprefix("runtime.")
    section, _, name = key.rpartition(".")
    return section, name


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files below `folder`, all or none.

    Returns their paths. Raises FileExistsError that names one that is there with another content,
    OSError for what cannot be written.
    """
    wanted = {folder / name: text for name, text in files.items()}
    for path, text in wanted.items():
        if path.exists() and path.read_text(errors="replace") != text:
            raise FileExistsError(17, "exists with another content; move it away", str(path))
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text)
        os.replace(part, path)
    return list(wanted)
