# SPDX-License-Identifier: Apache-2.0
"""The node page: what is on it, and that nothing of it runs, loads or breaks out of its cell."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from criagent.cri.boundary import FailedCall
from criagent.daemon.node_page import page
from criagent.telemetry.telemetry import Telemetry

HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>\x1b[2J\u202e&amp;'
VOID = {"meta", "img", "br", "link"}
REPORT: dict[str, Any] = {
    "version": "1.2.3",
    "conditions": [
        {"type": "RuntimeReady", "status": True, "reason": "", "message": ""},
        {"type": "NetworkReady", "status": False, "reason": "No", "message": HOSTILE},
    ],
    "sandboxes": {"ready": 1, "total": 2},
    "containers": {"created": 0, "running": 3, "exited": 4},
    "images": 5,
    "storage": {"driver": "overlay", "used_bytes": 6_000_000},
    "cgroup_driver": "systemd",
    "network": {"backend": "builtin"},
    "handlers": [{"name": "crun", "version": "1", "path": "/usr/bin/crun", "problem": ""}],
}


class Parsed(HTMLParser):
    """Tags, attributes and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def made(name: str = "web") -> str:
    return page(
        REPORT,
        pods=[(name, "shop", "NotReady", "abc")],
        containers=[("main", f"shop/{name}", "Running", 0, "def")],
        images=[(name, "1.0 MB")],
        failures=[
            FailedCall(0, "PullImage", "NOT_FOUND", name, name),
            FailedCall(1, "StartContainer", "INTERNAL", name, "the newest"),
        ],
    )


def test_the_page_is_well_formed_and_shows_the_node() -> None:
    found = Parsed(made())
    assert found.open == []
    for text in ("RuntimeReady", "1 of 2", "overlay", "6.0 MB", "crun", "web", "shop/web", "main"):
        assert text in found.cells, text
    assert found.cells.index("StartContainer") < found.cells.index("PullImage")
    assert ("class", "bad") in found.attributes
    assert ("name", "viewport") in found.attributes


def test_nothing_on_it_runs_or_loads() -> None:
    found = Parsed(made(HOSTILE))
    assert found.open == []
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(found.tags)
    names = {name for name, _ in found.attributes}
    assert names <= {"lang", "charset", "name", "content", "class", "data-name"}
    assert "url(" not in made()
    assert "\x1b" not in made(HOSTILE)
    assert "\u202e" not in made(HOSTILE)


def test_long_texts_and_lists_are_cut() -> None:
    rows = [(f"pod-{n}", "x" * 10_000, "Ready", "id") for n in range(3000)]
    text = page(REPORT, pods=rows, containers=[], images=[], failures=[])
    assert len(text) < 500_000
    assert "and 2500 more" in text


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
    telemetry = Telemetry()
    telemetry.serve(f"127.0.0.1:{number}", lambda: True, made)
    yield number
    telemetry.close()


def asked(port: int, host: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_a_browser_is_told_to_run_and_load_nothing(port: int) -> None:
    answer = asked(port, f"127.0.0.1:{port}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9880", 200),
        ("[::1]:9880", 200),
        ("10.0.0.1", 200),
        ("evil.example:9880", 404),
        ("", 404),
    ],
)
def test_a_foreign_name_for_this_address_gets_no_page(port: int, host: str, status: int) -> None:
    assert asked(port, host).status == status
