# SPDX-License-Identifier: Apache-2.0
"""A key of the configuration: its default, its sentence and its check, all beside the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

# Raises ValueError with what is wrong with a value that has the type of its key.
Check = Callable[[Any], None]

_ABOUT = "about"


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a key beside its type and default.

    `text` says for readers of `criagent config default` and of docs/configuration.md what the key
    does, in which unit, and when to change it.
    """

    text: str
    check: Check | None = None


def key(text: str, *, default: T, check: Callable[[T], None] | None = None) -> T:
    """A field of a section, as dataclasses.field; typed as its default for the type checker."""
    return field(default=default, metadata=metadata(text, check=check))


def metadata(text: str, *, check: Check | None = None) -> Mapping[str, About]:
    """The metadata of a field that needs dataclasses.field itself."""
    return {_ABOUT: About(text, check)}


def subsections(section: type) -> dict[str, type]:
    """The fields of a section that are sections themselves, such as [storage.native]."""
    hints = get_type_hints(section)
    return {f.name: hints[f.name] for f in fields(section) if is_dataclass(hints[f.name])}


def about(field: Field[Any]) -> About:
    """What the field of a section was declared with."""
    found: About = field.metadata[_ABOUT]
    return found
