# SPDX-License-Identifier: Apache-2.0
"""References: the shared grammar of containerd and Docker, and nothing but the documented error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.hosts_toml import default_url

HEX = "0123456789abcdef" * 4
SHA = f"sha256:{HEX}"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "references.json").read_text())

GOOD = {
    "busybox": "docker.io/library/busybox",
    "busybox:1.36": "docker.io/library/busybox:1.36",
    "index.docker.io/busybox": "docker.io/library/busybox",
    "docker.io/a/b:t": "docker.io/a/b:t",
    "a/b": "docker.io/a/b",
    "localhost/a": "localhost/a",
    "localhost:5000": "docker.io/library/localhost:5000",
    "localhost:5000/a:1": "localhost:5000/a:1",
    "HOST/a": "HOST/a",
    "quay.io/a/b/c/d:T_.-x": "quay.io/a/b/c/d:T_.-x",
    f"quay.io/a@{SHA}": f"quay.io/a@{SHA}",
    f"quay.io/a:1@{SHA}": f"quay.io/a:1@{SHA}",
    "[::1]:5000/a": "[::1]:5000/a",
    "[2001:db8::1]/a": "[2001:db8::1]/a",
    "a__b/c---d/e.f": "docker.io/a__b/c---d/e.f",
    "x/" + "a" * 200 + ":" + "t" * 128: "docker.io/x/" + "a" * 200 + ":" + "t" * 128,
}

BAD = [
    "",
    "A",
    "a/B",
    "a:",
    "a:-x",
    "a@",
    "a@sha256:abc",
    f"a@sha256:{HEX.upper()}",
    f"a@md5:{HEX[:32]}",
    f"a@{SHA}@{SHA}",
    "/a",
    "a/",
    "a//b",
    "a/../b",
    "..",
    "../../etc/passwd",
    "quay.io/../a",
    "-host.io/a",
    "host-.io/a",
    "host..io/a",
    "[::zz]/a",
    "[:::::]/a",
    "[]/a",
    "[::1/a",
    "host:port/a",
    "host:123456/a",
    "http://host/a",
    "user@host/a",
    "a b",
    "a\n",
    "a:t\n",
    "é",
    "a:é",
    "quay.io/" + "a" * 256,
    HEX,
    "a:" + "t" * 129,
    "a" * 2000,
    "a_____b",
    "a\0b",
]


@pytest.mark.parametrize(("text", "parts"), VECTORS["cases"])
def test_references_mean_what_they_mean_in_go(text: str, parts: list[str] | None) -> None:
    if parts is None:
        with pytest.raises(InvalidRequestError):
            parse_reference(text)
        return
    found = parse_reference(text)
    digest = "" if found.digest is None else str(found.digest)
    assert [found.registry, found.repository, found.tag or "", digest] == parts


@pytest.mark.parametrize("text", VECTORS["stricter"])
def test_names_that_no_registry_can_have_are_refused(text: str) -> None:
    """Go takes these; there is no such port, address or host name."""
    with pytest.raises(InvalidRequestError):
        parse_reference(text)


@pytest.mark.parametrize(("text", "full"), GOOD.items())
def test_references_are_written_in_full(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert str(parse_reference(full)) == full


@pytest.mark.parametrize("text", BAD)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_reference(text)


def test_the_default_tag_is_for_names_alone() -> None:
    assert parse_reference("a").with_default_tag().tagged == "docker.io/library/a:latest"
    assert parse_reference("a:1").with_default_tag().tagged == "docker.io/library/a:1"
    assert parse_reference(f"a@{SHA}").with_default_tag().tagged is None


def test_errors_do_not_repeat_long_texts() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_reference("quay.io/A" + "a" * 900)
    assert len(str(caught.value)) < 500


@given(st.text(alphabet="aA0.:/@-_[] sha256é\0\n", max_size=60) | st.text(max_size=40))
def test_any_text_parses_stably_or_is_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidRequestError:
        return
    assert parse_reference(str(reference)) == reference
    assert default_url(reference.registry).startswith("http")
    assert "/" not in reference.registry
    assert ".." not in reference.registry.split("/")


LABEL = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)


@given(
    st.lists(LABEL, min_size=2, max_size=3).map(".".join),
    st.none() | st.integers(1, 65535),
    st.lists(LABEL, min_size=1, max_size=4).map("/".join),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.booleans(),
)
def test_parts_come_back(
    host: str, port: int | None, path: str, tag: str | None, with_digest: bool
) -> None:
    registry = host if port is None else f"{host}:{port}"
    text = f"{registry}/{path}" + (f":{tag}" if tag else "") + (f"@{SHA}" if with_digest else "")
    reference = parse_reference(text)
    assert (reference.registry, reference.repository, reference.tag) == (registry, path, tag)
    assert str(reference.digest) == (SHA if with_digest else "None")
    assert str(reference) == text
