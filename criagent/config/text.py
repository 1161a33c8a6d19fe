# SPDX-License-Identifier: Apache-2.0
"""The configuration as text: TOML of the defaults or of what is in force, and its reference."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from criagent.config.defaults.workloads import Workload
from criagent.config.keys import about, subsections
from criagent.config.runtime_section import Handler
from criagent.config.sections import Config

_COLUMNS = 100

_HEAD = """\
# Configuration of criagent. Every key has its default here and is commented out.
# /etc/criagent/config.toml is read first, then config.d/*.toml beside it in name order; later files
# win key by key. `criagent config check` lists every problem. Restart criagent after a change.
"""

_REFERENCE_HEAD = """\
# Configuration

<!-- Generated from criagent/config by `make reference`. -->

criagent reads `/etc/criagent/config.toml`, then `config.d/*.toml` beside it in name order. Later
files win key by key. A missing key has its default.

| command | what it does |
|---|---|
| `criagent config check` | lists every problem with its file and key |
| `criagent config show` | prints the values in force with the file that sets each |
| `criagent config default` | prints every key with its default as TOML |
| `criagent config migrate` | makes one of that of containerd or others ([more](moving-a-node.md)) |

A change takes effect with `systemctl restart criagent`; containers keep running. `systemctl reload
criagent` is enough for most keys of registries and for the log level
([more](operations.md#configuration)). Names that end in `_s` are in seconds, names that end in
`_bytes` in bytes. Paths are absolute.
"""

_HANDLERS_HEAD = """\
## [runtime.handlers.NAME]

One OCI runtime under the name that a RuntimeClass uses. `crun` and `runc` exist by default; a file
can change single keys of them, and `runtime.handlers.runc = false` removes one.
"""

_WORKLOADS_HEAD = """\
## [runtime.workloads.NAME]

Resources and allowed annotations of pods that an annotation marks, as CRI-O's workloads
([more](defaults.md#workloads)). NAME is for messages.
"""


def default_text() -> str:
    """The default configuration as TOML; every key is commented out, below what it does."""
    lines = [_HEAD]
    for section, value in _sections(Config()):
        lines += [*_comment(_summary(value)), f"[{section}]"]
        for key in _own(type(value)):
            lines += _comment(about(key).text + _choices(type(value), key, '"'))
            lines += [f"#{line}" for line in _assignments(key.name, getattr(value, key.name))]
            lines.append("")
    return "\n".join(lines)


def effective_text(config: Config, origins: dict[str, Path]) -> str:
    """The configuration in force as TOML, each key that a file sets with that file's name."""
    lines: list[str] = []
    for section, value in _sections(config):
        lines.append(f"[{section}]")
        for key in _own(type(value)):
            origin = origins.get(f"{section}.{key.name}")
            comment = f"  # {origin}" if origin else ""
            item = getattr(value, key.name)
            lines += [f"{line}{comment}" for line in _assignments(key.name, item)]
        lines.append("")
    return "\n".join(lines)


def reference_text() -> str:
    """docs/configuration.md."""
    parts = [_REFERENCE_HEAD]
    for section, value in _sections(Config()):
        parts += [f"## [{section}]\n", f"{_summary(value)}\n", _table(type(value))]
        if section == "runtime":
            parts += [_HANDLERS_HEAD, _table(Handler), _WORKLOADS_HEAD, _table(Workload)]
    return "\n".join(parts)


def _sections(config: Config) -> Iterator[tuple[str, Any]]:
    """Each section with its dotted name, those within a section behind it."""
    for section in fields(Config):
        value = getattr(config, section.name)
        yield section.name, value
        for name in subsections(type(value)):
            yield f"{section.name}.{name}", getattr(value, name)


def _own(section: type) -> list[Field[Any]]:
    """The keys of a section that are not sections."""
    within = subsections(section)
    return [key for key in fields(section) if key.name not in within]


def _summary(section: object) -> str:
    return (type(section).__doc__ or "").strip()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _table(section: type) -> str:
    rows = ["| key | default | what it does |", "|---|---|---|"]
    for key in _own(section):
        text = _escaped(about(key).text + _choices(section, key, "`"))
        rows.append(f"| `{key.name}` | {_default_cell(key)} | {text} |")
    return "\n".join([*rows, ""])


def _default_cell(key: Field[Any]) -> str:
    if key.default is not MISSING:
        return f"`{toml(key.default)}`"
    if key.default_factory is not MISSING:
        return ", ".join(f"`{name}`" for name in key.default_factory()) or "none"
    return "none, required"


def _choices(section: type, key: Field[Any], quote: str) -> str:
    hint = get_type_hints(section)[key.name]
    if get_origin(hint) is not Literal:
        return ""
    *others, last = (f"{quote}{choice}{quote}" for choice in get_args(hint))
    return f" Values: {', '.join(others)} or {last}."


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _assignments(name: str, value: object) -> list[str]:
    if isinstance(value, dict) and value:
        return [f"{name}.{entry} = {toml(item)}" for entry, item in value.items()]
    return [f"{name} = {toml(value)}"]


def toml(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if is_dataclass(value):
        pairs = ", ".join(f"{f.name} = {toml(getattr(value, f.name))}" for f in fields(value))
        return f"{{ {pairs} }}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        pairs = ", ".join(f"{name} = {toml(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)  # escapes as a basic string of TOML has them
