# SPDX-License-Identifier: Apache-2.0
"""Proxies by scheme, and who needs none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.image.hosts.proxy import ProxySettings, from_environment

BOTH = ProxySettings(http="http://p:1", https="http://p:2")


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://example.test/x", "http://p:1"),
        ("https://example.test/x", "http://p:2"),
        ("http://localhost:5000", None),
        ("http://127.0.0.1:5000", None),
        ("http://127.8.8.8", None),
        ("http://[::1]:5000", None),
        ("https://10.0.0.1", "http://p:2"),
    ],
)
def test_the_scheme_decides_and_loopback_goes_straight(url: str, proxy: str | None) -> None:
    assert BOTH.for_url(url) == proxy


def test_no_proxy_is_none() -> None:
    assert ProxySettings().for_url("http://example.test") is None
    assert ProxySettings(http="http://p").for_url("https://example.test") is None


def test_a_proxy_without_scheme_speaks_http() -> None:
    assert ProxySettings(https="10.0.0.1:3128").for_url("https://x.test") == "http://10.0.0.1:3128"


@pytest.mark.parametrize(
    ("entries", "host", "direct"),
    [
        ("example.test", "example.test", True),
        ("example.test", "a.example.test", True),
        ("example.test", "badexample.test", False),
        (".example.test", "a.example.test", True),
        ("*.example.test", "a.example.test", True),
        ("EXAMPLE.test", "example.TEST", True),
        ("other.test, example.test", "example.test", True),
        ("other.test example.test", "example.test", True),
        ("example.test:443", "example.test", True),
        ("*", "anything.test", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.5/8", "10.1.2.3", True),
        ("fd00::/8", "[fd00::1]", True),
        ("10.0.0.0/8", "[fd00::1]", False),
        ("10.0.0.0/8", "host10.0.0.0", False),
        ("", "example.test", False),
        (",,", "example.test", False),
    ],
)
def test_no_proxy(entries: str, host: str, direct: bool) -> None:
    settings = ProxySettings(https="http://p", no_proxy=entries)
    assert (settings.for_url(f"https://{host}:443/v2/") is None) == direct


def test_the_configuration_comes_before_the_environment() -> None:
    environment = {"HTTP_PROXY": "http://E", "https_proxy": "http://e", "NO_PROXY": "n"}
    found = from_environment(environment, ProxySettings(http="http://c"))
    assert found == ProxySettings(http="http://c", https="http://e", no_proxy="n")
    assert from_environment({}, ProxySettings()) == ProxySettings()


@given(st.text(max_size=40), st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True))
def test_any_list_gives_an_answer(entries: str, host: str) -> None:
    answer = ProxySettings(http="http://p", no_proxy=entries).for_url(f"http://{host}/")
    assert answer in {None, "http://p"}
