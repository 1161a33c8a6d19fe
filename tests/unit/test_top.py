# SPDX-License-Identifier: Apache-2.0
"""The screen of `criagent top`."""

from __future__ import annotations

import curses

import pytest

from criagent._proto import api_pb2 as api
from criagent.cli.containers.top import Seen, View, after_key, lines
from criagent.cli.containers.usage import Usage


def seen(names: str = "abc") -> Seen:
    containers = [
        api.Container(
            id=name * 64,
            pod_sandbox_id="f" * 64,
            metadata=api.ContainerMetadata(name=f"of-{name}"),
            state=api.CONTAINER_RUNNING,
        )
        for name in names
    ]
    pod = api.PodSandbox(
        id="f" * 64, metadata=api.PodSandboxMetadata(name="po\x1b[31md", namespace="shop")
    )
    usages = [
        Usage(name * 64, cpu_percent=10.0 * n, memory_bytes=100 - n, disk_bytes=0, inodes=0)
        for n, name in enumerate(names)
    ]
    return Seen(pods=[pod], containers=containers, usages=usages, load=(0.5, 1, 2))


@pytest.mark.parametrize(
    ("order", "names"), [("cpu", "cba"), ("memory", "abc"), ("disk", "abc"), ("name", "abc")]
)
def test_the_order_is_that_of_the_key(order: str, names: str) -> None:
    shown = lines(seen(), View(order), height=20, width=200)
    assert "pods: 1 ready of 1" in shown[0]
    assert "load: 0.50 1.00 2.00" in shown[0]
    assert [line[0] for line in shown[3:]] == list(names)
    assert "po\\x1b[31md" in shown[3]


@pytest.mark.parametrize(("height", "width"), [(1, 10), (3, 40), (24, 80)])
def test_the_screen_is_never_larger_than_the_terminal(height: int, width: int) -> None:
    shown = lines(seen("abcdefghijklmnopqrstuvwxyz"), View(), height=height, width=width)
    assert len(shown) <= height
    assert max(map(len, shown)) <= width


def test_keys_scroll_within_the_containers_and_choose_the_order() -> None:
    view = View()
    for key, first in (
        (curses.KEY_UP, 0),
        (curses.KEY_DOWN, 1),
        (curses.KEY_NPAGE, 5),
        (curses.KEY_NPAGE, 6),
        (curses.KEY_PPAGE, 2),
        (curses.KEY_RESIZE, 2),
        (-1, 2),
    ):
        view = after_key(view, key, page=4, most=6)
        assert view.first == first
    assert after_key(view, ord("m"), page=4, most=6) == View("memory")
    shown = lines(seen(), View("name", first=2), height=20, width=200)
    assert [line[0] for line in shown[3:]] == ["c"]
