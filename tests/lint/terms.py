# SPDX-License-Identifier: Apache-2.0
"""Find words that the terms of CONTRIBUTING.md replace: `python -m tests.lint.terms [FILE…]`.

Four kinds of text are checked: names of the program (an identifier is split at underscores and
capitals), its messages, its comments and docstrings, and the documents. Each hit is printed as
file, line, term and replacement; the exit status is then 1. Tests are not checked.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The shell's own names in its completion scripts are no Python names, and textwrap's is not ours.
_FOREIGN_NAMES = frozenset({"break_long_words"})


@dataclasses.dataclass(frozen=True)
class Term:
    """A term and what to write instead; `places` are path prefixes where it may stand."""

    found: str
    instead: str
    places: tuple[str, ...] = ()

    def allowed(self, path: str) -> bool:
        """Whether the term may stand in the file."""
        return path.startswith(self.places) if self.places else False


@dataclasses.dataclass(frozen=True)
class Hit:
    """A term at its place."""

    path: str
    line: int
    term: Term

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.term.found}: write {self.term.instead}"


# Parts of an identifier.
PARTS = {
    term.found: term
    for term in (
        Term("box", "sandbox"),
        Term("boxes", "sandboxes"),
        Term("words", "argv, arguments or text"),
        Term("hurry", "now, or without a grace period"),
        Term("told", "notified, reported or sent"),
        Term("theirs", "what owns it, such as lower or peer"),
        Term("ours", "what owns it, such as own or local"),
        Term("looked", "checked or read"),
        Term("lowers", "lower_layers"),
    )
}
# Whole identifiers: `row_id` and `has_row` mean a row of the database, a bare `row` often does not.
_TABLES = (
    "criagent/store/",
    "criagent/cli/",
    "criagent/config/",
    "criagent/image/",
    "criagent/net/",
)
NAMES = {
    name: Term(name, instead, places)
    for name, instead, places in (
        ("row", "container, sandbox or image", _TABLES),
        ("rows", "containers, sandboxes or images", _TABLES),
        ("_rows", "containers, sandboxes or images", _TABLES),
    )
}
# Parameters and fields that are true or false.
FLAGS = {"mapped": Term("mapped", "has_userns")}

_ANYWHERE = (
    ("anew", r"\banew\b", "again"),
    ("of ours", r"\bof (?:ours|theirs)\b", "our, its or the agent's"),
    ("somebody", r"\bsomebody\b", "a process, a program or a user"),
    ("no more", r"\bconfigured no more\b|\bis (?:\w+ )?no more\b", "is no longer"),
    ("the like", r"\band the like\b", "and similar ones"),
    ("hurry", r"\bhurry\b", "now, or without a grace period"),
    ("box", r"\bbox(?:es)?\b", "sandbox"),
    ("without a word", r"\bwithout a word\b", "with no output, or silently"),
    ("cannot be had", r"\bcan(?:not)? be had\b", "is (not) available"),
)
_MESSAGES_ONLY = (
    ("is no", r"\b(?:is|are) no (?!longer\b|more\b)\w", "is not a, or is invalid"),
    ("is none", r"\bis none\b", "is not one of, or is invalid"),
    ("has not", r"\b(?:has|have) not(?:$|[,;:.]| the\b| an?\b)", "lacks, or does not have"),
    ("tells", r"\b(?:told|tells?)\b", "reports, returns or says"),
    ("want", r"(?:^|[:;] )want ", "must be, or expected"),
    ("under way", r"\bunder way\b", "in progress"),
    ("not among", r"\bnot among\b", "not one of, or outside"),
    ("nobody", r"\bnobody\b", "no process, no program or no user"),
    ("words", r"\bwords\b", "text or arguments"),
)


def _compiled(table: tuple[tuple[str, str, str], ...]) -> list[tuple[Term, re.Pattern[str]]]:
    return [(Term(name, instead), re.compile(pattern)) for name, pattern, instead in table]


TEXTS = _compiled(_ANYWHERE)
MESSAGES = TEXTS + _compiled(_MESSAGES_ONLY)
# The table of terms itself names what not to write.
_TERMS_PAGE = "CONTRIBUTING.md"


def names(path: str, source: str) -> Iterator[Hit]:
    """Hits in the identifiers of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.NAME or token.string in _FOREIGN_NAMES:
            continue
        if token.line.startswith(("from ", "import ")):  # names of other modules
            continue
        terms = [NAMES.get(token.string)]
        terms += [
            PARTS.get(part.lower()) for part in re.split(r"_+|(?<=[a-z])(?=[A-Z])", token.string)
        ]
        for term in terms:
            if term is not None and not term.allowed(path):
                yield Hit(path, token.start[0], term)


def flags(path: str, tree: ast.Module) -> Iterator[Hit]:
    """Hits in names of truth values."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=ast.Name(id="bool")):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="bool")):
                pass
            case _:
                continue
        if (term := FLAGS.get(name)) is not None:
            yield Hit(path, node.lineno, term)


def messages(path: str, tree: ast.Module) -> Iterator[Hit]:
    """Hits in texts that users see: string literals of several words."""
    documentation = set(_docstrings(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if node not in documentation and " " in text.strip():
                # A script in a string has lines; a message has none.
                if "\n" not in text:
                    yield from _matches(path, node.lineno, text, MESSAGES)


def remarks(path: str, source: str, tree: ast.Module) -> Iterator[Hit]:
    """Hits in comments and docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _matches(path, token.start[0], token.string, TEXTS)
    for node in _docstrings(tree):
        for number, line in enumerate(str(node.value).splitlines()):
            yield from _matches(path, node.lineno + number, line, TEXTS)


def document(path: str, source: str) -> Iterator[Hit]:
    """Hits in a page, outside of code blocks and of what stands between backticks."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        if not (fenced or line.startswith("    ") or (path == _TERMS_PAGE and line[:1] == "|")):
            yield from _matches(path, number, re.sub(r"`[^`]*`", "`…`", line), TEXTS)


def check(path: str, source: str) -> list[Hit]:
    """Hits in a file of the program, or in a page, by its line."""
    if not path.endswith(".py"):
        return list(document(path, source))
    tree = ast.parse(source)
    hits = [*names(path, source), *flags(path, tree)]
    hits += [*messages(path, tree), *remarks(path, source, tree)]
    return sorted(hits, key=lambda hit: hit.line)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            match node.body[:1]:
                case [ast.Expr(value=ast.Constant(value=str()) as text)]:
                    yield text


def _matches(
    path: str, line: int, text: str, table: list[tuple[Term, re.Pattern[str]]]
) -> Iterator[Hit]:
    for term, pattern in table:
        if pattern.search(text):
            yield Hit(path, line, term)


def _files() -> list[str]:
    listing = ["git", "ls-files", "criagent/*.py", "docs/*.md", "deploy/*.md", "*.md"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(
        path
        for path in set(found.splitlines())
        if not path.startswith(("criagent/_proto/", "tests/")) and path != "CHANGELOG.md"
    )


def main(paths: list[str]) -> int:
    """0 when no term is found in `paths`, by default all of the program and the documents."""
    hits = [hit for path in paths or _files() for hit in check(path, (ROOT / path).read_text())]
    print(*hits, sep="\n", end="\n" if hits else "")
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
