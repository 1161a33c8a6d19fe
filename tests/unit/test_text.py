# SPDX-License-Identifier: Apache-2.0
"""Text of strangers: printable, and never longer than its bound."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.text import bounded, printable, wire_size

# every code point, lone surrogates too
ANY = st.text(alphabet=st.characters(codec=None), max_size=300)


def json_size(text: str) -> int:
    return len(json.dumps(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain é 🐧", "plain é 🐧"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m\x07\x00", "\\x1b[31m\\x07\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # right-to-left override
        ("a\u2028b\x85", "a\\u2028b\\x85"),  # line breaks of Unicode
        ("\ud800", "\\ud800"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_short_text_stays_and_a_long_one_loses_its_middle() -> None:
    assert bounded("x" * 100, 100) == "x" * 100
    cut = bounded("begin" + "x" * 1000 + "; cure", 100)
    assert len(cut) <= 100
    assert cut.startswith("begin")
    assert cut.endswith("; cure")
    assert "(1011 characters)" in cut


@given(ANY, st.integers(min_value=40, max_value=200), st.sampled_from([len, wire_size, json_size]))
def test_the_bound_holds_for_every_text_and_measure(text: str, limit: int, size: object) -> None:
    assert callable(size)
    shown = bounded(text * 3, limit, size)
    assert size(shown) <= limit
    assert shown.isprintable()
    shown.encode()


@given(st.text(alphabet="abc% é🐧"))
def test_the_wire_size_is_that_of_percent_encoding(text: str) -> None:
    encoded = "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}"
        for byte in text.encode()
    )
    assert wire_size(text) == len(encoded)
