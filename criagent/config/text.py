"""The configuration as TOML: the defaults, and what is in force."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

from criagent.config.sections import Config


def default_text() -> str:
    """The default configuration as TOML; every key is commented out."""
    lines: list[str] = []
    for section in fields(Config):
        value = getattr(Config(), section.name)
        lines.append(f"[{section.name}]")
        for key in fields(value):
            item = getattr(value, key.name)
            if isinstance(item, dict):
                lines += [f"# {key.name}.{name} = {_toml(entry)}" for name, entry in item.items()]
            else:
                lines.append(f"# {key.name} = {_toml(item)}")
        lines.append("")
    return "\n".join(lines)


def effective_text(config: Config, origins: dict[str, Path]) -> str:
    """The configuration in force as TOML, each key that a file sets with that file's name."""
    lines: list[str] = []
    for section in fields(Config):
        value = getattr(config, section.name)
        lines.append(f"[{section.name}]")
        for key in fields(value):
            origin = origins.get(f"{section.name}.{key.name}")
            comment = f"  # {origin}" if origin else ""
            item = getattr(value, key.name)
            if isinstance(item, dict):
                lines += [f"{key.name}.{name} = {_toml(v)}{comment}" for name, v in item.items()]
            else:
                lines.append(f"{key.name} = {_toml(item)}{comment}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if is_dataclass(value):
        pairs = ", ".join(f"{f.name} = {_toml(getattr(value, f.name))}" for f in fields(value))
        return f"{{ {pairs} }}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)  # escapes as a basic string of TOML has them
