# SPDX-License-Identifier: Apache-2.0
"""Digests: parsed strictly, since they become file names."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.digest import digest_of, parse_digest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha384:{HEX}{HEX[:32]}", f"sha512:{HEX}{HEX}"])
def test_all_algorithms_come_back(text: str) -> None:
    digest = parse_digest(text)
    assert str(digest) == text
    assert digest.hasher().name == digest.algorithm


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha512:{HEX}",
        f"sha256:{HEX}{HEX}",
        f"md5:{HEX[:32]}",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        "sha256:../../../../etc/passwd",
        "sha256:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64,  # digits, but not hexadecimal ones
        f"sha256:{HEX[:-1]}/",
        "x" * 10_000,
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_digest(text)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=200))
def test_digests_of_content_are_those_of_hashlib(content: bytes) -> None:
    digest = digest_of(content)
    hasher = digest.hasher()
    hasher.update(content)
    assert hasher.hexdigest() == digest.hex == hashlib.sha256(content).hexdigest()
    assert parse_digest(str(digest)) == digest


@given(st.text(max_size=80))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert str(parse_digest(text)) == text
