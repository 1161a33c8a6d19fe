# SPDX-License-Identifier: Apache-2.0
"""docs/cri-support.md names every call and field of the protocol, and tells the truth on calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from criagent._proto import api_pb2
from criagent.cri.image_service import ImageService
from criagent.cri.runtime_service import RuntimeService

_PAGE = (Path(__file__).parents[2] / "docs" / "cri-support.md").read_text()
_ROOT = Path(__file__).parents[2]
_CLIENT = (_ROOT / "tests" / "support" / "cri_client.py").read_text()
_STATES = {"done", "ignored", "refused", "later"}


def containers() -> Iterator[tuple[str, str, str, str]]:
    """(section, name, state, note) of every table row."""
    section = ""
    for line in _PAGE.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in {"RPC", "field"}:
            yield section, cells[0], cells[1], cells[2] if len(cells) > 2 else ""


def messages() -> Iterator[Descriptor]:
    pending = list(api_pb2.DESCRIPTOR.message_types_by_name.values())
    while pending:
        message = pending.pop()
        if not message.GetOptions().map_entry:
            yield message
            pending += message.nested_types


def test_every_field_stands_once_and_nothing_else_does() -> None:
    prefix = api_pb2.DESCRIPTOR.package + "."
    real = sorted(
        (message.full_name.removeprefix(prefix), field.name)
        for message in messages()
        for field in message.fields
    )
    assert sorted((s, n) for s, n, _, _ in containers() if s != "Calls") == real


def served(call: str) -> str:
    """ "done", "later" for a call whose method refuses it, or "" for one without a method."""
    for service in (RuntimeService, ImageService):
        if (method := vars(service).get(call)) is not None:
            return (
                "later"
                if "is not implemented in this release" in inspect.getsource(method)
                else "done"
            )
    return ""


def test_every_call_stands_once_with_what_it_does() -> None:
    services = api_pb2.DESCRIPTOR.services_by_name.values()
    real = {method.name: served(method.name) for one in services for method in one.methods}
    assert {n: state for s, n, state, _ in containers() if s == "Calls"} == real


def makes(source: str, call: str) -> bool:
    """Whether a file of tests names the call, or the method of `Cri` that makes it."""
    methods = re.findall(r"    def (\w+)\((.*?)(?=\n    def |\Z)", _CLIENT, re.DOTALL)
    helpers = [name for name, body in methods if f".{call}(" in body]
    names = [rf"\b{call}\b", *(rf"\bcri\.{name}\(" for name in helpers)]
    return any(re.search(name, source) for name in names)


def test_every_call_has_a_test_that_makes_it() -> None:
    calls = {name: note for section, name, _, note in containers() if section == "Calls"}
    assert len(calls) == 46
    without = [name for name, note in calls.items() if not note]
    assert without in ([], ["RestorePod"])
    for name, note in calls.items():
        if note:
            file = _ROOT / note.strip("`")
            assert file.name.startswith("test_"), name
            assert makes(file.read_text(), name), f"{file} does not call {name}"


def test_states_are_known_and_whatever_is_not_done_has_its_reason() -> None:
    for section, name, state, note in containers():
        assert state in _STATES, (section, name)
        if state in {"ignored", "refused"}:
            assert re.search(r"\w", note), (section, name)
