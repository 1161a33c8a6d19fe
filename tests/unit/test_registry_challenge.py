# SPDX-License-Identifier: Apache-2.0
"""WWW-Authenticate as RFC 9110, section 11.6.1 has it, and as registries write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.image.registry.challenge import parse_challenges

REALM = "https://auth.test/token"


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        (f'Bearer realm="{REALM}",service="s"', [("bearer", {"realm": REALM, "service": "s"})]),
        (f'BEARER Realm="{REALM}" , SERVICE = "s"', [("bearer", {"realm": REALM, "service": "s"})]),
        (f"Bearer realm={REALM},service=s", [("bearer", {"realm": REALM, "service": "s"})]),
        (f"bearer realm={REALM}", [("bearer", {"realm": REALM})]),
        (
            'Basic realm="reg", Bearer realm="r",service="s"',
            [("basic", {"realm": "reg"}), ("bearer", {"realm": "r", "service": "s"})],
        ),
        (
            'Bearer realm="r",service="s", Basic realm="reg"',
            [("bearer", {"realm": "r", "service": "s"}), ("basic", {"realm": "reg"})],
        ),
        ('Negotiate, Basic realm="reg"', [("negotiate", {}), ("basic", {"realm": "reg"})]),
        ("Negotiate, NTLM", [("negotiate", {}), ("ntlm", {})]),
        ('Negotiate YIIB+/a==, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        (r'Basic realm="a \"b\" \\ c, d=e"', [("basic", {"realm": 'a "b" \\ c, d=e'})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ("Basic", [("basic", {})]),
        ('Basic realm="never closed, x=y', [("basic", {"realm": "never closed, x=y"})]),
        ('Bearer realm="one",realm="two"', [("bearer", {"realm": "one"})]),
        ('Bearer  realm="r"  scope="a b"', [("bearer", {"realm": "r", "scope": "a b"})]),
        (', ,Basic realm="x",,', [("basic", {"realm": "x"})]),
        ('Bearer\trealm="r",\tservice="s"', [("bearer", {"realm": "r", "service": "s"})]),
        ("", []),
        ('"quoted", Basic realm=x', [("basic", {"realm": "x"})]),
    ],
)
def test_challenges_of_one_field(field: str, wanted: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, dict(c.parameters)) for c in parse_challenges([field])] == wanted


def test_challenges_of_several_fields_keep_their_order() -> None:
    found = parse_challenges(["Negotiate", 'Basic realm="x"', 'Bearer realm="y"'])
    assert [challenge.scheme for challenge in found] == ["negotiate", "basic", "bearer"]


def test_their_number_is_limited() -> None:
    assert len(parse_challenges(["A b=c, " * 10_000] * 10)) == 16
    (one,) = parse_challenges(["A " + ",".join(f"p{n}=1" for n in range(10_000))])
    assert len(one.parameters) == 32


@given(st.text(alphabet='Bearer realm=",\\ \t/x:\x00é', max_size=200))
def test_nothing_fails(field: str) -> None:
    for challenge in parse_challenges([field]):
        assert challenge.scheme == challenge.scheme.lower()


NAME = st.text(alphabet="abcXYZ019-._~", min_size=1, max_size=8)
QUOTED = st.text(alphabet='ab "\\,=/:', max_size=12)


@given(st.lists(st.tuples(NAME, st.lists(st.tuples(NAME, QUOTED), max_size=4)), max_size=4))
def test_what_is_written_by_the_grammar_is_read(
    challenges: list[tuple[str, list[tuple[str, str]]]],
) -> None:
    written, wanted = [], []
    for scheme, parameters in challenges:
        quoted = [
            f'{name}="{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'
            for name, value in parameters
        ]
        written.append(f"{scheme} {', '.join(quoted)}".strip())
        firsts: dict[str, str] = {}
        for name, value in parameters:
            firsts.setdefault(name.lower(), value)
        wanted.append((scheme.lower(), firsts))
    found = parse_challenges([", ".join(written)])
    assert [(c.scheme, dict(c.parameters)) for c in found] == wanted
