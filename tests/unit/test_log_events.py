# SPDX-License-Identifier: Apache-2.0
"""docs/log-events.md names every log event of the source with its levels, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_TOP = Path(__file__).resolve().parents[2]
_PAGE = _TOP / "docs" / "log-events.md"
_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}
_LEVEL = "(?:debug|info|warning|error)"
_ROW = re.compile(rf"\| `([a-z_]+)` \| ({_LEVEL}(?:, {_LEVEL})*) \|")


def documented() -> dict[str, set[str]]:
    """Levels by event, from the tables of the page. An event stands there once."""
    found: dict[str, set[str]] = {}
    for line in _PAGE.read_text().splitlines():
        if row := _ROW.match(line):
            event, levels = row.groups()
            assert event not in found, f"{event} is documented twice"
            found[event] = set(levels.split(", "))
    return found


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """The hand-written modules."""
    for path in sorted((_TOP / "criagent").rglob("*.py")):
        if "_proto" not in path.parts:
            yield path, ast.parse(path.read_text())


def constants() -> dict[str, str]:
    """Texts that modules give a name, by that name."""
    return {
        target.id: node.value.value
        for _, tree in trees()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def method_level(node: ast.AST) -> str:
    """The level of `log.info` and the like, "" for anything else."""
    match node:
        case ast.Attribute(value=ast.Name(id="log"), attr=name):
            return _LEVELS.get(name, "")
    return ""


def logger_levels(node: ast.expr) -> set[str]:
    """Levels of `log.info`, or of `log.debug if … else log.info`; none for anything else."""
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return {level for branch in branches if (level := method_level(branch))}


def event_of(call: ast.Call) -> tuple[set[str], ast.expr | None]:
    """Levels and event of a call that logs: `log.info("event")`, `(log.info if … else …)("event")`,
    or one that hands a method of `log` on with `args=("event",)`. No levels for any other call.
    """
    if levels := logger_levels(call.func):
        return levels, call.args[0] if call.args else None
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    levels = set().union(*map(logger_levels, given.values()))
    args = given.get("args")
    return levels, args.elts[0] if isinstance(args, ast.Tuple) and args.elts else None


def logged() -> dict[str, set[str]]:
    """Levels by event, from the source. Every event is a constant."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    named = constants()
    for path, tree in trees():
        seen = 0
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            levels, event = event_of(call)
            if not levels:
                continue
            seen += len(levels)
            text = named.get(event.id) if isinstance(event, ast.Name) else None
            if isinstance(event, ast.Constant) and isinstance(event.value, str):
                text = event.value
            assert text is not None, f"{path}:{call.lineno}: the event is not a constant text"
            found[text] |= levels
        uses = sum(bool(method_level(node)) for node in ast.walk(tree))
        assert seen == uses, f"{path}: a use of log that this test does not understand"
    return dict(found)


def test_the_page_names_every_event_with_its_levels_and_no_other() -> None:
    assert documented() == logged()


def test_ways_of_logging_are_understood() -> None:
    source = """
log.exception("one")
(log.debug if quiet else log.info)(CALL)
Thread(target=log.warning, args=("two",))
other.info("three")
"""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = [(levels, ast.unparse(event)) for levels, event in map(event_of, calls) if event]
    assert [pair for pair in found if pair[0]] == [
        ({"error"}, "'one'"),
        ({"debug", "info"}, "CALL"),
        ({"warning"}, "'two'"),
    ]
