"""Reading the configuration: /etc/criagent/config.toml and the drop-ins config.d/*.toml.

Drop-ins are read in name order, later files winning key by key. Every problem of every file is
reported at once, with file and key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from criagent.config.contradictions import contradictions
from criagent.config.keys import about
from criagent.config.runtime_section import Handler, Runtime, default_handlers
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
            if isinstance(section, dict):
                _merge(values.setdefault(name, {}), section)
                origins |= {f"{name}.{key}": file for key in section}
    if problems:
        raise ConfigError(problems)
    if (runtime := values.get("runtime")) and "handlers" in runtime:
        runtime["handlers"] = _with_default_handlers(runtime["handlers"])
    config: Config = msgspec.convert(values, Config, dec_hook=_path)
    if found := contradictions(config):
        raise ConfigError(
            [
                f"{next((origins[key] for key in keys if key in origins), path)}: {keys[0]}: {text}"
                for keys, text in found
            ]
        )
    return config, origins


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
            hint = _meant(name, kinds)
            found.append(f"[{name}]: unknown section{hint}; known sections are {sorted(kinds)}")
        elif not isinstance(section, dict):
            found.append(f"{name}: must be a section, not a value")
        else:
            found += _section_problems(name, kinds[name], section)
    return found


def _section_problems(name: str, kind: type, section: Mapping[str, object]) -> list[str]:
    known = {f.name: f for f in fields(kind)}
    found = []
    for key, value in section.items():
        if key not in known:
            found.append(f"{name}.{key}: unknown key{_meant(key, known)}")
            continue
        if kind is Runtime and key == "handlers" and isinstance(value, dict):
            found += _handler_problems(f"{name}.{key}", value)
            value = _with_default_handlers(value)  # noqa: PLW2901 - as it will be
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


def _handler_problems(name: str, handlers: dict[str, Any]) -> list[str]:
    known = {f.name for f in fields(Handler)}
    return [
        f"{name}.{handler}.{key}: unknown key{_meant(key, known)}"
        for handler, entry in handlers.items()
        if isinstance(entry, dict)
        for key in entry
        if key not in known
    ]


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _choices(section: type, key: str, value: object) -> str:
    """What a key with a list of values takes; "" for other keys."""
    hint = get_type_hints(section)[key]
    if get_origin(hint) is not Literal:
        return ""
    choices = get_args(hint)
    text = ", ".join(repr(choice) for choice in choices)
    return f"must be one of {text}, not {value!r}{_meant(str(value), choices)}"


def _merge(values: dict[str, Any], section: dict[str, Any]) -> None:
    """Later keys win. Handlers are merged by name, so that a file can add one."""
    handlers = {**values.get("handlers", {}), **_table(section.get("handlers"))}
    values.update(section)
    if "handlers" in section:
        values["handlers"] = handlers


def _with_default_handlers(handlers: dict[str, Any]) -> dict[str, Any]:
    """The default handlers stay unless a file says `NAME = false`; their keys may be set singly."""
    found: dict[str, Any] = {}
    for name, handler in default_handlers().items():
        found[name] = {key.name: getattr(handler, key.name) for key in fields(handler)}
    for name, entry in handlers.items():
        found[name] = {**found.get(name, {}), **entry} if isinstance(entry, dict) else entry
    return {name: _plain(entry) for name, entry in found.items() if entry is not False}


def _plain(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: str(value) if isinstance(value, Path) else value for key, value in entry.items()}


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"must be an absolute path, not {value!r}")
    return Path(value)
