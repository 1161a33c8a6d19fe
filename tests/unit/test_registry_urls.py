# SPDX-License-Identifier: Apache-2.0
"""Redirects byte for byte, origins, and URLs in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.image.registry.urls import origin, redacted, redirect_target

BASE = "https://r.test/v2/a/b/blobs/sha256:0?ns=x"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (
            "https://s.test/a%2Fb/%7Ed?Sig=a%2Bb%3D&e=1:2&q=a+b",
            "https://s.test/a%2Fb/%7Ed?Sig=a%2Bb%3D&e=1:2&q=a+b",
        ),
        ("https://s.test/UPPER%2f?sig=%2b", "https://s.test/UPPER%2f?sig=%2b"),
        ("https://s.test/a/../b?x=[1]|2&y='*'", "https://s.test/a/../b?x=[1]|2&y='*'"),
        ("https://s.test/ü?x=%25", "https://s.test/ü?x=%25"),
        ("https://s.test/p?", "https://s.test/p?"),
        ("https://s.test/p;v=1#top", "https://s.test/p;v=1"),
        ("https://s.test/a b", "https://s.test/a%20b"),
        (b"https://s.test/\xfc".decode("utf-8", "surrogateescape"), "https://s.test/%FC"),
        ("HTTPS://S.test/x", "HTTPS://S.test/x"),
        ("//s.test/x%2F", "https://s.test/x%2F"),
        ("/x%2F?y", "https://r.test/x%2F?y"),
        ("moved/x", "https://r.test/v2/a/b/blobs/moved/x"),
        ("../x?a/../b", "https://r.test/v2/a/b/x?a/../b"),
        ("?hop=1", "https://r.test/v2/a/b/blobs/sha256:0?hop=1"),
    ],
)
def test_a_location_is_taken_as_it_is_written(location: str, target: str) -> None:
    assert redirect_target(BASE, location) == target


@pytest.mark.parametrize("location", ["/a\rb", "/a\nHost: x", "/a\x00", "/\x7f"])
def test_control_characters_are_refused(location: str) -> None:
    with pytest.raises(ValueError, match="control"):
        redirect_target(BASE, location)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://r.test/a", "https://R.test:443/b", True),
        ("http://r.test", "http://r.test:80", True),
        ("https://r.test", "http://r.test", False),
        ("https://r.test", "https://r.test:5000", False),
        ("https://r.test", "https://s.r.test", False),
        ("https://r.test", "https://user@r.test", True),
        ("http://127.0.0.1:5000", "http://localhost:5000", False),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    assert (origin(one) == origin(other)) == same


@pytest.mark.parametrize("url", ["ftp://x/", "http:///x", "x", "http://[x", "http://x:99999", ""])
def test_what_has_no_origin(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        origin(url)


def test_secrets_and_length_of_a_url_do_not_show() -> None:
    assert redacted("https://u:p@r.test/x?token=t#f") == "https://r.test/x"
    assert len(redacted("https://r.test/" + "x" * 100_000)) < 400
    assert "secret" not in redacted("https://u:secret@[broken?secret")
    assert "\x1b" not in redacted("https://r.test/\x1b[31m")


@given(st.text(max_size=60))
def test_any_location_gives_a_target_or_the_error(location: str) -> None:
    try:
        target = redirect_target(BASE, location)
    except ValueError:
        return
    assert redacted(target).isprintable()
