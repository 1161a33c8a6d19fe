# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration: /etc/criagent/config.toml and the drop-ins config.d/*.toml.

Drop-ins are read in name order, later files winning key by key. Every problem of every file is
reported at once, with file and key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from criagent.config import handlers
from criagent.config.contradictions import contradictions
from criagent.config.defaults.workloads import unknown_keys
from criagent.config.hints import meant
from criagent.config.keys import about, subsections
from criagent.config.runtime_section import Runtime
from criagent.config.sections import Config

DEFAULT_PATH = Path("/etc/criagent/config.toml")


class ConfigError(Exception):
    """`problems` lists each file and key with what is wrong there."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path) -> Config:
    """The configuration of `path` and its drop-ins; the defaults when the default file is missing.

    Raises ConfigError with every problem found.
    """
    return load_with_origins(path)[0]


def load_with_origins(path: Path) -> tuple[Config, dict[str, Path]]:
    """As `load`, with the file that each "section.key" was set in last; defaults are not in it."""
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, Path] = {}  # where a key was set last
    for file in files(path, problems):
        try:
            document = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
            problems.append(f"{file}: {exc}")
            continue
        problems += [f"{file}: {text}" for text in problems_of(document)]
        for name, section in document.items():
            if isinstance(section, dict) and name in get_type_hints(Config):
                values[name] = _merged(name, values.get(name, {}), section)
                origins |= dict.fromkeys(_keys(name, get_type_hints(Config)[name], section), file)
    if problems:
        raise ConfigError(problems)
    config = built(values)
    if found := contradictions(config):
        raise ConfigError(
            [
                f"{next((origins[key] for key in keys if key in origins), path)}: {keys[0]}: {text}"
                for keys, text in found
            ]
        )
    return config, origins


def built(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration of sections in which `problems_of` finds nothing."""
    sections = dict(values)
    if (runtime := sections.get("runtime")) and "handlers" in runtime:
        sections["runtime"] = {**runtime, "handlers": handlers.with_defaults(runtime["handlers"])}
    return msgspec.convert(sections, Config, dec_hook=_path)


def files(path: Path, problems: list[str] | None = None) -> list[Path]:
    """The files that make the configuration of `path`, the winning one last.

    A main file that cannot be read is left out, and said in `problems`.
    """
    problems = [] if problems is None else problems
    main = []
    try:
        path.stat()
        main.append(path)
    except OSError as exc:
        if path != DEFAULT_PATH or not isinstance(exc, FileNotFoundError):
            missing = isinstance(exc, FileNotFoundError)
            problems.append(f"{path}: {'no such file' if missing else exc.strerror or exc}")
    return main + sorted((path.parent / "config.d").glob("*.toml"))


def problems_of(document: Mapping[str, object], whole: type = Config) -> list[str]:
    """What is wrong with one file, key by key; `whole` has the sections as its fields."""
    kinds = get_type_hints(whole)
    found: list[str] = []
    for name, section in document.items():
        if name not in kinds:
            hint = meant(name, kinds)
            found.append(f"[{name}]: unknown section{hint}; known sections are {sorted(kinds)}")
        elif not isinstance(section, dict):
            found.append(f"{name}: must be a section, not a value")
        else:
            found += _section_problems(name, kinds[name], section)
    return found


def _merged(name: str, earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """A section of two files: later keys win, those of a section within it too."""
    merged = {**earlier, **later}
    for key in later.keys() & earlier.keys():
        if isinstance(earlier[key], dict) and isinstance(later[key], dict):
            merged[key] = {**earlier[key], **later[key]}
    if name == "runtime" and "handlers" in later:
        merged["handlers"] = handlers.merged(earlier.get("handlers"), later["handlers"])
    return merged


def _keys(name: str, kind: type, section: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of the keys of a section, and of those of sections within it."""
    within = subsections(kind)
    for key, value in section.items():
        if key in within and isinstance(value, dict):
            yield from _keys(f"{name}.{key}", within[key], value)
        else:
            yield f"{name}.{key}"


def _section_problems(name: str, kind: type, section: Mapping[str, object]) -> list[str]:
    known = {f.name: f for f in fields(kind)}
    within = subsections(kind)
    found: list[str] = []
    for key, value in section.items():
        if key not in known:
            found.append(f"{name}.{key}: unknown key{meant(key, known)}")
            continue
        if key in within:
            if isinstance(value, dict):
                found += _section_problems(f"{name}.{key}", within[key], value)
            else:
                found.append(f"{name}.{key}: must be a section, not a value")
            continue
        if kind is Runtime and key == "handlers" and isinstance(value, dict):
            found += handlers.problems(f"{name}.{key}", value)
            value = handlers.with_defaults(value)  # noqa: PLW2901 - as it will be
        if kind is Runtime and key == "workloads":
            found += unknown_keys(f"{name}.{key}", value)
        try:
            _check(kind, known[key], value)
        except ValueError as exc:  # msgspec's ValidationError is one
            found.append(f"{name}.{key}: {exc}")
    return found


def _check(section: type, key: Field[Any], value: object) -> None:
    """Raises ValueError with what is wrong with the value of `key`."""
    try:
        converted: object = msgspec.convert({key.name: value}, section, dec_hook=_path)
    except msgspec.ValidationError:
        if choices := _choices(section, key.name, value):
            raise ValueError(choices) from None
        raise
    if check := about(key).check:
        check(getattr(converted, key.name))


def _choices(section: type, key: str, value: object) -> str:
    """What a key with a list of values takes; "" for other keys."""
    hint = get_type_hints(section)[key]
    if get_origin(hint) is not Literal:
        return ""
    choices = get_args(hint)
    text = ", ".join(repr(choice) for choice in choices)
    return f"must be one of {text}, not {value!r}{meant(str(value), choices)}"


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError  # how a dec_hook of msgspec says that the type is not its own
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"must be an absolute path, not {value!r}")
    return Path(value)
