# SPDX-License-Identifier: Apache-2.0
"""Rules that no linter knows: sizes of packages, files, functions and parts; attributes."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).parents[2] / "criagent"
FILES = sorted(path for path in TOP.rglob("*.py") if path.parent.name != "_proto")
PACKAGES = sorted(
    {path.parent for path in FILES if TOP / "runtime" in path.parents} - {TOP / "runtime"}
)

MODULES, PACKAGE_LINES = 14, 2000
FILE_LINES, FUNCTION_LINES = 500, 60
PARAMETERS = 5
FIELDS = 8
# Attributes of http.server's base class, which is set up without its look-up of a name.
INHERITED = {("MetricsServer", "server_name"), ("MetricsServer", "server_port")}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """A definition and where it stands."""

    path: Path
    node: ast.ClassDef | Function

    def __str__(self) -> str:
        return f"{self.path.relative_to(TOP.parent)}:{self.node.lineno} {self.node.name}"


def functions() -> Iterator[Found]:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield Found(path, node)


def classes(*below: str) -> Iterator[Found]:
    for path, tree in trees():
        if not below or any((TOP / part) in (path, *path.parents) for part in below):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    yield Found(path, node)


@functools.cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in FILES]


def methods(found: Found) -> list[Function]:
    return [node for node in found.node.body if isinstance(node, Function)]


def parameters(function: Function) -> list[str]:
    """Names of what a caller passes."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in {"self", "cls"}]


def fields(found: Found) -> list[str]:
    """What the constructor of a class takes: that of a dataclass, or its own."""
    if any("dataclass" in ast.unparse(one) for one in found.node.decorator_list):
        named = (node.target for node in found.node.body if isinstance(node, ast.AnnAssign))
        return [target.id for target in named if isinstance(target, ast.Name)]
    return [name for one in methods(found) if one.name == "__init__" for name in parameters(one)]


def does_something(found: Found) -> bool:
    """Whether it is a part, which waits for things, and not a value."""
    return any(isinstance(one, ast.AsyncFunctionDef) for one in methods(found))


def born(function: Function) -> Iterator[str]:
    """Attributes that a method sets on its own object."""
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


def declared(found: Found, known: dict[str, Found]) -> set[str]:
    """Attributes that exist once an object is made: of its class and of the classes below it."""
    names: set[str] = set()
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for method in methods(found):
        if method.name == "__init__":
            names |= set(born(method))
        names |= {method.name for one in method.decorator_list if "setter" in ast.unparse(one)}
    for base in found.node.bases if isinstance(found.node, ast.ClassDef) else ():
        name = ast.unparse(base).partition("[")[0]
        if name in known and known[name] != found:
            names |= declared(known[name], known)
    return names


def places(found: Iterator[Found] | list[Found]) -> list[str]:
    return [str(one) for one in found]


@pytest.mark.parametrize(
    "package", PACKAGES, ids=lambda package: str(package.relative_to(TOP / "runtime"))
)
def test_a_package_of_the_runtime_stays_small(package: Path) -> None:
    modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    lines = sum(len(path.read_text().splitlines()) for path in modules)
    assert len(modules) <= MODULES
    assert lines <= PACKAGE_LINES


def test_no_file_is_longer_than_its_limit() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in sizes.items() if lines > FILE_LINES} == {}


def test_no_function_is_longer_than_its_limit() -> None:
    long = [
        found
        for found in functions()
        if (found.node.end_lineno or 0) - found.node.lineno + 1 > FUNCTION_LINES
    ]
    assert places(long) == []


def test_no_function_takes_more_than_its_parameters() -> None:
    """Constructors have their own limit: their parts are handed over by name."""
    many = [
        found
        for found in functions()
        if isinstance(found.node, Function)
        and found.node.name not in {"__init__", "__new__"}
        and len(parameters(found.node)) > PARAMETERS
    ]
    assert places(many) == []


def test_records_that_are_handed_on_are_small() -> None:
    handed_on = classes("daemon/wiring", "cri/backend.py")
    assert places([found for found in handed_on if len(fields(found)) > FIELDS]) == []


def test_parts_need_few_others() -> None:
    parts = [
        found for found in classes("runtime", "image", "cri", "daemon") if does_something(found)
    ]
    assert places([found for found in parts if len(fields(found)) > FIELDS]) == []


def test_every_attribute_exists_from_the_start() -> None:
    known = {found.node.name: found for found in classes()}
    late = [
        f"{found}.{name} in {method.name}"
        for found in classes()
        for method in methods(found)
        if method.name != "__init__"
        for name in born(method)
        if name not in declared(found, known) and (found.node.name, name) not in INHERITED
    ]
    assert late == []
