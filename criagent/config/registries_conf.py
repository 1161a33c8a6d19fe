# SPDX-License-Identifier: Apache-2.0
"""registries.conf of Podman, CRI-O and Skopeo (man 5 containers-registries.conf), read.

The file, and the drop-ins beside it in name order (man 5 containers-registries.conf.d): later files
win, [[registry]] tables by their prefix and aliases by their name. Version 1 (`[registries.search]`
and its neighbours) is for the main file alone. Keys that are not known have no effect, as with the
format's own readers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REGISTRY_KEYS = frozenset(
    {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"}
)
MIRROR_KEYS = frozenset({"location", "insecure", "pull-from-mirror"})
_VERSION_1 = "registries"
_VERSION_2 = frozenset(
    {"registry", "unqualified-search-registries", "short-name-mode", "credential-helpers"}
)
_USES = ("all", "digest-only", "tag-only")
_MODES = ("enforcing", "permissive", "disabled")
AUTH_FILES = "containers-auth.json"  # of credential-helpers: the node's file of credentials
_LARGEST = 1 << 20  # bytes of one file
_SHORT_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,254}")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)"
_HOST = rf"{_NAME}(?::[0-9]{{1,5}})?"
_PLACE = re.compile(rf"{_HOST}(?:/[a-z0-9][a-z0-9._/-]{{0,254}})?")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A [[registry.mirror]]. `use` is all, digest-only or tag-only."""

    location: str
    insecure: bool = False
    use: str = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A [[registry]]. `location` is where names that begin with `prefix` really are."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """What the files say together. `search` is None where no file has the key.

    `helpers` are ends of names docker-credential-…, or AUTH_FILES, in the order to ask them.
    """

    registries: Mapping[str, Registry] = field(default_factory=dict)  # by prefix
    search: tuple[str, ...] | None = None
    mode: str = "permissive"
    aliases: Mapping[str, str] = field(default_factory=dict)
    helpers: tuple[str, ...] = ()  # empty where no file has the key: AUTH_FILES alone


def files(file: Path) -> list[Path]:
    """The file and its drop-ins, the winning one last; those that exist."""
    folder = file.parent / f"{file.name}.d"
    found = [file] if file.exists() else []
    return found + sorted(path for path in folder.glob("*.conf") if path.is_file())


def read(file: Path) -> RegistriesConf:
    """The configuration of `file` with its drop-ins.

    Raises ValueError that names the file and the key, OSError; FileNotFoundError when there is
    neither the file nor a drop-in.
    """
    parts = files(file)
    if not parts:
        raise FileNotFoundError(2, "no such file", str(file))
    whole = RegistriesConf()
    for part in parts:
        try:
            whole = merged(whole, parsed(_document(part), main=part == file))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{part}: {error}") from None
    return whole


def parsed(document: Mapping[str, Any], *, main: bool = True) -> RegistriesConf:
    """The configuration of one file. Raises ValueError that names the key."""
    if document.get(_VERSION_1):
        if not main:
            raise ValueError("a drop-in has to be of version 2: use [[registry]]")
        if mixed := sorted(document.keys() & _VERSION_2):
            raise ValueError(f"has keys of version 1 ([registries]) and of version 2 ({mixed[0]})")
        return _version_1(document[_VERSION_1])
    registries: dict[str, Registry] = {}
    for entry in _list(document, "registry", dict):
        one = registry(entry)
        if registries.setdefault(one.prefix, one) != one:
            raise ValueError(f"[[registry]] {one.prefix!r}: is there twice, with other values")
    search = None
    if "unqualified-search-registries" in document:
        search = _search(document, "unqualified-search-registries")
    mode = _choice(document, "short-name-mode", ("", *_MODES))
    aliases = dict(_aliases(document.get("aliases", {})))
    return RegistriesConf(registries, search, mode, aliases, _helpers(document))


def registry(entry: Mapping[str, Any]) -> Registry:
    """A [[registry]] table. Raises ValueError that names the table and the key."""
    name = str(entry.get("prefix") or entry.get("location") or "")
    try:
        location = _location(entry)
        prefix = str(entry.get("prefix") or location).rstrip("/")
        if not prefix:
            raise ValueError("prefix or location: one of them has to be set")
        if "*" in prefix and not re.fullmatch(r"\*\.[A-Za-z0-9.-]+", prefix):
            raise ValueError("prefix: a wildcard is *.DOMAIN, without a port or a path")
        digests = _flag(entry, "mirror-by-digest-only")
        return Registry(
            prefix=prefix,
            location="" if location == prefix else location,
            insecure=_flag(entry, "insecure"),
            blocked=_flag(entry, "blocked"),
            mirrors=tuple(_mirror(one, digests=digests) for one in _list(entry, "mirror", dict)),
        )
    except ValueError as error:
        raise ValueError(f"[[registry]] {name[:200]!r}: {error}") from None


def merged(first: RegistriesConf, later: RegistriesConf) -> RegistriesConf:
    """Both, `later` winning; an empty alias there removes one."""
    aliases = {**first.aliases, **later.aliases}
    return RegistriesConf(
        {**first.registries, **later.registries},
        first.search if later.search is None else later.search,
        later.mode or first.mode,
        {name: value for name, value in aliases.items() if value},
        later.helpers or first.helpers,
    )


def _document(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"is larger than {_LARGEST} bytes")
    return tomllib.loads(data.decode())


def _version_1(sections: Any) -> RegistriesConf:
    if not isinstance(sections, dict):
        raise ValueError("registries: must be a section")  # noqa: TRY004 - a file's mistake

    def names(section: str) -> tuple[str, ...]:
        table = sections.get(section, {})
        return _search(table, "registries") if isinstance(table, dict) else ()

    insecure, blocked = set(names("insecure")), set(names("block"))
    registries = {
        name: Registry(prefix=name, insecure=name in insecure, blocked=name in blocked)
        for name in sorted(insecure | blocked)
    }
    return RegistriesConf(registries, names("search") if "search" in sections else None)


def _search(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = tuple(one.rstrip("/") for one in _list(entry, key, str))
    for name in found:
        if not re.fullmatch(_HOST, name) or not is_host(name):
            raise ValueError(f"{key}: {name[:80]!r} is not a registry (HOST or HOST:PORT)")
    return found


def _helpers(document: Mapping[str, Any]) -> tuple[str, ...]:
    found = tuple(_list(document, "credential-helpers", str))
    for name in found:
        if not _HELPER.fullmatch(name):
            raise ValueError(
                f"credential-helpers: {name[:80]!r} is not the NAME of a docker-credential-NAME"
            )
    return found


def is_host(name: str) -> bool:
    """Whether the part of a name before its first slash is a registry."""
    return bool({".", ":"} & set(name)) or name == "localhost"


def _mirror(entry: Mapping[str, Any], *, digests: bool) -> Mirror:
    location = _location(entry)
    if not location:
        raise ValueError("mirror: its location is missing")
    use = _choice(entry, "pull-from-mirror", ("", *_USES)) or "all"
    return Mirror(location, _flag(entry, "insecure"), "digest-only" if digests else use)


def _location(entry: Mapping[str, Any]) -> str:
    value = entry.get("location", "")
    if not isinstance(value, str) or (value and not _PLACE.fullmatch(value.rstrip("/"))):
        raise ValueError("location: expected HOST, HOST:PORT or HOST/PATH, without http://")
    return value.rstrip("/")


def _flag(entry: Mapping[str, Any], key: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false")  # noqa: TRY004 - a file's mistake
    return value


def _choice(entry: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = entry.get(key, "")
    if value not in choices:
        known = ", ".join(filter(None, choices))
        raise ValueError(f"{key}: must be one of {known}, not {str(value)[:80]!r}")
    return str(value)


def _list(entry: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        what = "tables" if kind is dict else "strings"
        raise ValueError(f"{key}: expected a list of {what}")
    return value


def _aliases(table: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(table, dict):
        raise ValueError("aliases: must be a section")  # noqa: TRY004 - a file's mistake
    for name, value in table.items():
        if not isinstance(value, str) or not _SHORT_NAME.fullmatch(name):
            raise ValueError(f"aliases: {name[:80]!r}: expected NAME = 'REGISTRY/REPOSITORY'")
        registry, slash, _ = value.partition("/")
        if value and not (slash and is_host(registry) and _PLACE.fullmatch(value)):
            raise ValueError(
                f"aliases: {name[:80]!r}: {value[:200]!r} must be a whole name without tag and "
                "digest"
            )
        yield name, value
