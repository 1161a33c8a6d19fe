# SPDX-License-Identifier: Apache-2.0
"""WWW-Authenticate (RFC 9110, section 11.6.1): which challenges a server makes.

One field may hold several challenges and a server may send several fields. Beyond the grammar,
values without quotes may hold any character but blanks and commas: registries write URLs so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAMETER = re.compile(
    r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?: "((?:[^"\\]|\\.)*)"? | ([^\s,"=][^\s,]*) )""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_BETWEEN = re.compile(r"[\s,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MAX_CHALLENGES = 16  # of one answer
_MAX_PARAMETERS = 32  # of one challenge


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme in lower case with its parameters, their names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(fields: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate fields, in the order in which they stand.

    Never fails: invalid challenges are skipped. The first of two parameters of one name
    counts.
    """
    found: list[Challenge] = []
    for field in fields:
        for challenge in _challenges(field):
            if len(found) == _MAX_CHALLENGES:
                return found
            found.append(challenge)
    return found


def _challenges(field: str) -> Iterator[Challenge]:
    at, end = _skip(field, 0), len(field)
    while at < end:
        scheme = _TOKEN.match(field, at)
        if scheme is None:
            at = _next_comma(field, at)
            continue
        parameters: dict[str, str] = {}
        at = _skip(field, scheme.end())
        if lone := _TOKEN68.match(field, at):
            if _follows_scheme(field, scheme.end(), at):
                at = _skip(field, lone.end())
        else:
            while parameter := _PARAMETER.match(field, at):
                name, quoted, plain = parameter.groups()
                value = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
                if len(parameters) < _MAX_PARAMETERS:
                    parameters.setdefault(name.lower(), value)
                at = _skip(field, parameter.end())
        yield Challenge(scheme.group().lower(), parameters)


def _follows_scheme(field: str, start: int, end: int) -> bool:
    """Whether only blanks stand between: after a comma a token68 is a scheme of its own."""
    return "," not in field[start:end]


def _skip(field: str, at: int) -> int:
    between = _BETWEEN.match(field, at)
    return between.end() if between else at


def _next_comma(field: str, at: int) -> int:
    comma = field.find(",", at)
    return len(field) if comma < 0 else _skip(field, comma)
