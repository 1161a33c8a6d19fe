# SPDX-License-Identifier: Apache-2.0
"""Rules of a file format: a table from its keys to what becomes of them.

A key is a path with "/" between its parts; "*" stands for any one part, and "/**" at the end for
everything below. A rule is called with the value, or with a whole section where the table names the
section itself. Keys that no rule names are left, and said to be unknown: nothing is lost silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from criagent.config import checks
from criagent.config.migrate.migration import Migration, Where, shown

Rule = Callable[[Migration, Where, Any], None]
Table = Mapping[str, Rule]

_UNSET: tuple[object, ...] = ("", [], {}, None)
_SIZE = re.compile(r"([0-9]+)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def apply(migration: Migration, table: Table, document: Mapping[str, Any], where: Where) -> None:
    """Read a document, or the section at `where`, by its table."""
    patterns = {tuple(pattern.split("/")): rule for pattern, rule in table.items()}
    for path, value, rule in _matched(patterns, document, ()):
        at = below(where, *path)
        if rule is None:
            migration.left(at, f"{shown(value)}: this version does not know the key")
            continue
        try:
            rule(migration, at, value)
        except (AttributeError, TypeError):  # such as a list where a table should be
            migration.left(at, f"{shown(value)}: has another form than the program's own files")


def _matched(
    patterns: Mapping[tuple[str, ...], Rule], section: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Rule | None]]:
    for name, value in section.items():
        path = (*above, name)
        rule = _exact(patterns, path)
        if rule is None and isinstance(value, dict):
            yield from _matched(patterns, value, path)
            continue
        rule = rule or _wide(patterns, path)
        if rule is not None or value not in _UNSET:
            yield path, value, rule


def _exact(patterns: Mapping[tuple[str, ...], Rule], path: tuple[str, ...]) -> Rule | None:
    return next((patterns[p] for p in patterns if p[-1] != "**" and _fits(p, path)), None)


def _wide(patterns: Mapping[tuple[str, ...], Rule], path: tuple[str, ...]) -> Rule | None:
    for pattern, rule in patterns.items():
        above = pattern[:-1]
        if pattern[-1] == "**" and len(path) > len(above) and _fits(above, path[: len(above)]):
            return rule
    return None


def _fits(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(pattern) == len(path) and all(
        part in {"*", name} for part, name in zip(pattern, path, strict=True)
    )


def below(where: Where, *path: str) -> Where:
    """A key of the section at `where`, as TOML writes it."""
    parts = [p if re.fullmatch(r"[A-Za-z0-9_-]+", p) else f"'{shown(p)[1:-1]}'" for p in path]
    return Where(where.file, ".".join([where.key, *parts] if where.key else parts))


def to(key: str, convert: Callable[[Any], object] | None = None, *defaults: object) -> Rule:
    """Set `key`, unless the value is unset or one of the other program's `defaults`."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        if value in _UNSET or value in defaults:
            migration.default(where)
            return
        try:
            converted = value if convert is None else convert(value)
        except (ValueError, TypeError) as error:
            migration.left(where, f"{shown(value)}: {error}")
            return
        migration.take(where, key, converted)

    return rule


def left(text: str, *defaults: object) -> Rule:
    """No counterpart, unless the value is unset or one of the other program's `defaults`."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        if value in _UNSET or value is False or value in defaults:
            migration.default(where)
        else:
            migration.left(where, f"{shown(value)}: {text}")

    return rule


def unneeded(text: str) -> Rule:
    """Nothing is lost, whatever the value."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        if value in _UNSET:
            migration.default(where)
        else:
            migration.unneeded(where, text)

    return rule


def if_on(key: str, new: object) -> Rule:
    """Set `key` to `new` where the value is true."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        if value is True:
            migration.take(where, key, new)
        else:
            migration.default(where)

    return rule


def if_off(key: str, new: object) -> Rule:
    """Set `key` to `new` where the value is false."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        if value is False:
            migration.take(where, key, new)
        else:
            migration.default(where)

    return rule


def size_bytes(value: object) -> int:
    """Bytes of "10G", "10GB", "10GiB" or a number. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    matched = _SIZE.fullmatch(str(value).strip())
    if matched is None:
        raise ValueError("expected a size such as 10G")
    return int(matched[1]) << 10 * _POWERS[matched[2].lower()]


def seconds(value: object) -> float:
    """Seconds of "4h0m0s". Raises ValueError."""
    return checks.seconds(str(value))


def number(value: object) -> int:
    """A number, written as a string or not. Raises ValueError."""
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,18}", str(value)):
        raise ValueError("expected a number")
    return int(str(value))


def driver(value: object) -> str:
    """The storage driver for a driver or snapshotter of another program. Raises ValueError."""
    names = {
        "overlayfs": "overlay",
        "overlay2": "overlay",
        "overlay": "overlay",
        "vfs": "native",
        "devicemapper": "devmapper",
    }
    if value in {"stargz", "soci", "nydus", "cvmfs-snapshotter"}:
        raise ValueError("images are pulled whole, not lazily; use overlay")
    return names.get(str(value), str(value))
