# SPDX-License-Identifier: Apache-2.0
"""Tokens: guessing, reuse, age and number."""

from __future__ import annotations

import pytest

from criagent.base.errors import ExhaustedError
from criagent.streaming.outcome import Outcome, parse_size
from criagent.streaming.sessions import PortForwardSession, Tokens


def test_a_token_works_once_within_its_minute() -> None:
    clock = [0.0]
    tokens = Tokens(lambda: clock[0])
    session = PortForwardSession(sandbox_id="x", ports=())
    first, second = tokens.put(session), tokens.put(session)
    assert first != second
    assert len(first) >= 32  # 192 bits
    assert tokens.take(first) == session
    assert tokens.take(first) is None
    clock[0] = 61.0
    assert tokens.take(second) is None
    assert tokens.take("guess") is None


def test_a_thousand_may_wait_and_no_more() -> None:
    clock = [0.0]
    tokens = Tokens(lambda: clock[0])
    session = PortForwardSession(sandbox_id="x", ports=())
    for _ in range(1000):
        tokens.put(session)
    with pytest.raises(ExhaustedError):
        tokens.put(session)
    clock[0] = 61.0
    tokens.put(session)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"Width":0,"Height":1}', b'{"Width":"a","Height":1}', b"x" * 5000]
)
def test_garbage_is_no_size(data: bytes) -> None:
    assert parse_size(data) is None


def test_outcomes_are_told_as_clients_read_them() -> None:
    assert b'"Success"' in Outcome().status()
    assert b'"ExitCode", "message": "3"' in Outcome(code=3).status()
    assert b"InternalError" in Outcome(failure="broken").status()
    assert Outcome().text() == ""
    assert "3" in Outcome(code=3).text()
