# SPDX-License-Identifier: Apache-2.0
"""OCI hooks of an operator: one JSON file each, in the schema 1.0.0 of man 5 oci-hooks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from criagent.config.defaults.json_file import FileError, read_json

VERSION = "1.0.0"
STAGES = frozenset(
    "prestart createRuntime createContainer startContainer poststart poststop".split()
)
_MOST = 1 << 20  # bytes of a file


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Program(_Strict, frozen=True, kw_only=True):
    """What runs: a hook of the OCI runtime specification. `timeout` is in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, msgspec.Meta(gt=0)] | None = None


class When(_Strict, frozen=True, kw_only=True):
    """The containers that get the hook: all conditions that are given have to be met."""

    always: bool | None = None
    annotations: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    has_bind_mounts: bool | None = None


class HookFile(_Strict, frozen=True, kw_only=True):
    """A whole file."""

    version: str
    hook: Program
    when: When
    stages: tuple[str, ...]


def read(path: Path) -> HookFile:
    """Raises FileError with the path, and the line or the key, for a file that cannot be used."""
    file = read_json(path, HookFile, _MOST)
    if text := _problem(file):
        raise FileError(f"{path}: {text}")
    return file


def _problem(file: HookFile) -> str:
    if file.version != VERSION:
        return f"version: {file.version[:40]!r} is not {VERSION}, the one that is read"
    if not file.hook.path.startswith("/"):
        return f"hook.path: {file.hook.path[:200]!r} is not absolute"
    if not Path(file.hook.path).exists():
        return f"hook.path: {file.hook.path} does not exist; install it, or remove the file"
    for stage in file.stages:
        if stage not in STAGES:
            return f"stages: {stage[:80]!r} is not one of {', '.join(sorted(STAGES))}"
    patterns: Mapping[str, tuple[str, ...]] = {
        "when.annotations": (*file.when.annotations, *file.when.annotations.values()),
        "when.commands": file.when.commands,
    }
    for name, texts in patterns.items():
        for text in texts:
            try:
                re.compile(text)
            except re.error as error:
                return f"{name}: {text[:200]!r} is not a regular expression: {error}"
    return ""
