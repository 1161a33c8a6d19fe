# SPDX-License-Identifier: Apache-2.0
"""The drill as docs/troubleshooting.md has it: what each broken node shows, and its commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"
_TITLE = "## The 3 a.m. drill\n"
_SEEN = re.compile(r'^- (.+?): "(.+)"$', re.MULTILINE)
_NAMES = re.compile(r"\b(FILE|PID|POD|COPY)\b")
_GAP = "…"


@dataclass(frozen=True)
class Case:
    """A broken node. `seen` has pairs of (a command, or "a pod" or "a pull", and a quote)."""

    heading: str
    seen: tuple[tuple[str, str], ...]
    script: str


def cases() -> list[Case]:
    """All of them, in the order of the page."""
    text = _PAGE.read_text().split(_TITLE)[1].split("\n## ")[0]
    return [_case(part) for part in text.split("\n### ")[1:]]


def _case(text: str) -> Case:
    heading, _, body = text.partition("\n")
    script = "\n".join(line[4:] for line in body.splitlines() if line.startswith("    "))
    seen = tuple((place.strip("`"), quote) for place, quote in _SEEN.findall(body))
    return Case(heading, seen, script)


def found(quote: str, text: str) -> dict[str, str] | None:
    """What the words in capitals of `quote` stand for in `text`; None if the quote is not there."""
    pattern = "".join(_pattern(part) for part in _NAMES.split(quote))
    if re.search(rf"{_NAMES.pattern}$", quote):
        pattern += r"(?=[\s\",]|$)"
    match = re.search(pattern, text, re.MULTILINE)
    return None if match is None else match.groupdict()


def _pattern(part: str) -> str:
    if _NAMES.fullmatch(part):
        return rf"(?P<{part}>[^\s\",]+?)"
    return re.escape(part).replace(_GAP, ".*?")


def filled(script: str, known: dict[str, str]) -> str:
    """The script with the words in capitals replaced. Raises KeyError for one that was not seen."""
    return _NAMES.sub(lambda match: known[match[1]], script)
