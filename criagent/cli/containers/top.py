# SPDX-License-Identifier: Apache-2.0
"""Show pods and containers on the whole terminal, refreshed until q is typed.

Keys: c sorts by processor time, m by memory, d by disk, n by name; the arrows and page keys scroll;
q ends. CPU % is of one processor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from criagent.base.text import printable
from criagent.cli.containers.calls import Calls, with_agent
from criagent.cli.containers.found import all_containers, all_pods
from criagent.cli.containers.selection import SHORT
from criagent.cli.containers.stats import seconds
from criagent.cli.containers.usage import Usage, between, sample
from criagent.cli.progress import size_text

if TYPE_CHECKING:
    import curses

    from criagent._proto import api_pb2

_ORDERS = {"c": "cpu", "m": "memory", "d": "disk", "n": "name"}
_FIRST_S = 0.3  # between the first two samples, so that the screen is not empty for long
_HEAD = ("CONTAINER", "CPU %", "MEM", "DISK", "NAME", "POD", "NAMESPACE")
_NUMBERS = 3  # columns after the first that are aligned to the right


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at the node."""

    pods: Sequence[api_pb2.PodSandbox]
    containers: Sequence[api_pb2.Container]
    usages: Sequence[Usage]
    load: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class View:
    """What the keys choose."""

    order: str = "cpu"
    first: int = 0  # container of the page


def arguments(command: argparse.ArgumentParser) -> None:
    """How often to look."""
    command.add_argument(
        "--seconds", type=seconds, default=2.0, metavar="N", help="between samples (default: 2)"
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 2 without a terminal, 1 for a failure, 3 when the agent cannot be reached."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("top needs a terminal; `criagent stats` prints the same once", file=sys.stderr)
        return 2
    return with_agent(chosen, lambda calls: _on_screen(chosen.seconds, calls))


def _on_screen(every_s: float, calls: Calls) -> int:
    import curses

    try:
        curses.setupterm()
    except curses.error as error:
        print(f"TERM={os.environ.get('TERM', '')!r}: {error}", file=sys.stderr)
        return 2
    curses.wrapper(_loop, every_s, calls)
    return 0


def _loop(screen: curses.window, every_s: float, calls: Calls) -> None:
    import curses

    if curses.tigetstr("civis"):
        curses.curs_set(0)
    view, before, look_at = View(), sample(calls), time.monotonic() + _FIRST_S
    seen: Seen | None = None
    while True:
        if time.monotonic() >= look_at:
            seen, before = _look(calls, before)
            look_at = time.monotonic() + every_s
        height, width = screen.getmaxyx()
        if seen is not None:
            _draw(screen, lines(seen, view, height=height, width=width))
        screen.timeout(max(int((look_at - time.monotonic()) * 1000), 0))
        key = screen.getch()
        if key == ord("q"):
            return
        most = len(seen.usages) - 1 if seen else 0
        view = after_key(view, key, page=max(height - 4, 1), most=max(most, 0))


def after_key(view: View, key: int, *, page: int, most: int) -> View:
    """The view after a key; other keys change nothing. `most` is the last container's number."""
    import curses

    moves = {
        curses.KEY_DOWN: 1,
        curses.KEY_UP: -1,
        curses.KEY_NPAGE: page,
        curses.KEY_PPAGE: -page,
    }
    if key in moves:
        return replace(view, first=min(max(view.first + moves[key], 0), most))
    if 0 < key < 128 and chr(key) in _ORDERS:
        return View(order=_ORDERS[chr(key)])
    return view


def _look(
    calls: Calls, before: dict[str, api_pb2.ContainerStats]
) -> tuple[Seen, dict[str, api_pb2.ContainerStats]]:
    latest = sample(calls)
    seen = Seen(
        pods=all_pods(calls),
        containers=all_containers(calls),
        usages=between(before, latest.values()),
        load=os.getloadavg(),
    )
    return seen, latest


def lines(seen: Seen, view: View, *, height: int, width: int) -> list[str]:
    """The whole screen: at most `height` lines of at most `width` characters."""
    from criagent._proto import api_pb2

    ready = sum(pod.state == api_pb2.SANDBOX_READY for pod in seen.pods)
    running = sum(one.state == api_pb2.CONTAINER_RUNNING for one in seen.containers)
    load = " ".join(f"{value:.2f}" for value in seen.load)
    title = (
        f"pods: {ready} ready of {len(seen.pods)}   containers: {running} running of "
        f"{len(seen.containers)}   load: {load}   sorted by {view.order}   q ends"
    )
    rows = [_HEAD, *_cells(seen, view)[view.first :]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    shown = [
        "  ".join(
            cell.rjust(size) if 1 <= at <= _NUMBERS else cell.ljust(size)
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [line[:width] for line in [title, "", *shown][:height]]


def _cells(seen: Seen, view: View) -> list[tuple[str, ...]]:
    containers = {one.id: one for one in seen.containers}
    pods = {pod.id: pod.metadata for pod in seen.pods}
    cells = []
    for usage in sorted(seen.usages, key=lambda one: _place(one, view.order, containers)):
        container = containers.get(usage.id)
        pod = pods.get(container.pod_sandbox_id) if container else None
        name = container.metadata.name if container else ""
        of_pod = (pod.name, pod.namespace) if pod else ("", "")
        cells.append(
            (
                usage.id[:SHORT],
                "-" if usage.cpu_percent is None else f"{usage.cpu_percent:.1f}",
                "-" if usage.memory_bytes is None else size_text(usage.memory_bytes),
                size_text(usage.disk_bytes),
                *(printable(text) for text in (name, *of_pod)),
            )
        )
    return cells


def _place(
    usage: Usage, order: str, containers: dict[str, api_pb2.Container]
) -> tuple[float, str, str]:
    container = containers.get(usage.id)
    name = container.metadata.name if container else ""
    most = {
        "cpu": usage.cpu_percent or 0,
        "memory": usage.memory_bytes or 0,
        "disk": usage.disk_bytes,
        "name": 0,
    }[order]
    return -most, name, usage.id


def _draw(screen: curses.window, shown: list[str]) -> None:
    import contextlib
    import curses

    screen.erase()
    for at, line in enumerate(shown):
        # The last cell of the screen cannot be written, and a wide character may not fit.
        with contextlib.suppress(curses.error):
            screen.addstr(at, 0, line, curses.A_BOLD if at == 2 else curses.A_NORMAL)
    screen.refresh()
