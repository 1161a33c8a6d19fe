# SPDX-License-Identifier: Apache-2.0
"""What a migration has found: settings, registries, and a finding for every key that was read."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from criagent.config.contradictions import contradictions
from criagent.config.load import built, problems_of
from criagent.config.migrate.registry import RegistryHosts
from criagent.config.sections import Config

_LONGEST = 120  # characters of a value that a finding shows


class Verdict(enum.StrEnum):
    """What became of a key."""

    TAKEN = "taken"  # it is in the new configuration
    DEFAULT = "default"  # the other program's default, or unset: nothing to take
    UNNEEDED = "unneeded"  # the agent does so anyway, or has no such part
    LEFT = "left"  # the agent behaves otherwise, and the text says how


@dataclass(frozen=True, slots=True)
class Where:
    """A key in a file, as its readers write it."""

    file: Path
    key: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One key that was read. `text` names the new key, or gives the reason and what to do."""

    where: Where
    verdict: Verdict
    text: str


@dataclass(slots=True)
class Migration:
    """Filled by the readers in turn; the first value of a key counts."""

    settings: dict[str, object] = field(default_factory=dict)  # by dotted key
    origins: dict[str, Where] = field(default_factory=dict)
    registries: dict[str, RegistryHosts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def take(self, where: Where, key: str, value: object) -> None:
        """Set the dotted `key`. A value that the agent refuses, or a second one, is left."""
        section, _, name = key.rpartition(".")
        if problem := next(iter(problems_of(nested({key: value}))), ""):
            self._found(where, Verdict.LEFT, f"{shown(value)}: {problem}")
        elif key in self.settings and self.settings[key] != value:
            first = self.origins[key]
            self._found(
                where,
                Verdict.LEFT,
                f"{shown(value)}: {key} is {shown(self.settings[key])} already, by {first}",
            )
        else:
            self.settings.setdefault(key, value)
            self.origins.setdefault(key, where)
            self._found(where, Verdict.TAKEN, f"[{section}] {name} = {shown(value)}")

    def registry(self, where: Where, name: str, text: str) -> RegistryHosts:
        """The hosts of a registry, to be added to; `text` says what is added."""
        self._found(where, Verdict.TAKEN, f"certs.d/{name}/hosts.toml: {text}")
        return self.registries.setdefault(name, RegistryHosts(name))

    def default(self, where: Where) -> None:
        """The key is unset, or has the other program's default."""
        self._found(where, Verdict.DEFAULT, "")

    def unneeded(self, where: Where, text: str) -> None:
        """Nothing is lost without the key."""
        self._found(where, Verdict.UNNEEDED, text)

    def left(self, where: Where, text: str) -> None:
        """The key has no counterpart."""
        self._found(where, Verdict.LEFT, text)

    def settle(self) -> None:
        """Leave what does not fit together, such as a default handler that was not taken."""
        while found := contradictions(built(nested(self.settings))):
            keys, text = found[0]
            key = next(key for key in keys if key in self.settings)
            self.settings.pop(key)
            self._found(self.origins.pop(key), Verdict.LEFT, f"{key}: {text}")

    def changed(self) -> dict[str, object]:
        """The settings that differ from the agent's defaults."""
        return {k: v for k, v in self.settings.items() if v != default_of(k)}

    def of(self, verdict: Verdict) -> Iterator[Finding]:
        """The findings of one verdict, in the order in which the files have them."""
        return (finding for finding in self.findings if finding.verdict is verdict)

    def _found(self, where: Where, verdict: Verdict, text: str) -> None:
        self.findings.append(Finding(where, verdict, text))


def shown(value: object) -> str:
    """A value on one line, escaped and cut."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def nested(settings: Mapping[str, object]) -> dict[str, Any]:
    """The document that has the values at their dotted keys."""
    document: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return document


def default_of(key: str) -> object:
    """The agent's default of a dotted key as TOML has it, None for one without."""
    value: object = Config()
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [str(item) if isinstance(item, Path) else item for item in value]
    return None if is_dataclass(value) else value
