# SPDX-License-Identifier: Apache-2.0
"""runtime.handlers of several files: merged by name, so that a file can add or change one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from criagent.config.hints import meant
from criagent.config.runtime_section import Handler, default_handlers


def merged(earlier: object, later: object) -> dict[str, Any]:
    """The handlers of two files, of which the later wins for each name."""
    return {**_table(earlier), **_table(later)}


def with_defaults(handlers: Mapping[str, Any]) -> dict[str, Any]:
    """The default handlers stay unless a file says `NAME = false`; their keys may be set singly."""
    found: dict[str, Any] = {}
    for name, handler in default_handlers().items():
        found[name] = {key.name: getattr(handler, key.name) for key in fields(handler)}
    for name, entry in handlers.items():
        found[name] = {**found.get(name, {}), **entry} if isinstance(entry, dict) else entry
    return {name: _plain(entry) for name, entry in found.items() if entry is not False}


def problems(name: str, handlers: Mapping[str, Any]) -> list[str]:
    """Keys that no handler has."""
    known = {f.name for f in fields(Handler)}
    return [
        f"{name}.{handler}.{key}: unknown key{meant(key, known)}"
        for handler, entry in handlers.items()
        if isinstance(entry, dict)
        for key in entry
        if key not in known
    ]


def _plain(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: str(value) if isinstance(value, Path) else value for key, value in entry.items()}


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
