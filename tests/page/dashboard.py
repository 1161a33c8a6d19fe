# SPDX-License-Identifier: Apache-2.0
"""The panels of deploy/grafana/criagent.json with what a Prometheus answers to their queries.

    CRIAGENT_PROGRAMS=$(tests/nodes/tools/promtool) tests/node/up python3 -m tests.page.dashboard

A Prometheus (of Debian's package) scrapes the agent of the test node while pods come and go for
DASHBOARD_S=120. Every query must be answered without an error, and every panel but those of
UNEVENTFUL with a series. The drawing, docs/pictures/dashboard.svg, is made here and not by Grafana.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, container, pod
from tests.support.waiting import until

DASHBOARD = Path("/src/deploy/grafana/criagent.json")
PICTURE = Path("/src/docs/pictures/dashboard.svg")
SECONDS = float(os.environ.get("DASHBOARD_S", "120"))
SCRAPE_S = 2
PORT = 9090
# They need NRI plugins, or profiles from a registry.
UNEVENTFUL = {
    "Time of a call of an NRI plugin",
    "NRI plugins that refuse or do not answer",
}
COLOURS = ("#2a78c8", "#d9822b", "#3d9950", "#b5403a", "#7f5fa8", "#1f9e9e", "#8a6d3b", "#555")
SCALES: dict[str, Sequence[tuple[float, str]]] = {
    "bytes": ((1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB")),
    "s": ((1, " s"), (1e-3, " ms")),
}
COLUMN, ROW, GAP, TOP = 50, 22, 8, 44  # pixels
Series = tuple[str, list[tuple[float, float]]]


@contextlib.contextmanager
def prometheus() -> Iterator[None]:
    """A Prometheus that scrapes the agent, for the block."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "prometheus.yml")
        job = {"job_name": "criagent", "static_configs": [{"targets": ["127.0.0.1:9880"]}]}
        settings = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": "2s"}
        config.write_text(json.dumps({"global": settings, "scrape_configs": [job]}))
        argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        argv.append(f"--web.listen-address=127.0.0.1:{PORT}")
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            try:
                until(lambda: ask("query", query="criagent_ready"), "the first scrape", 60)
                yield
            finally:
                one.terminate()


def ask(call: str, **parameters: str) -> list[dict[str, Any]]:
    """The answer of Prometheus' API; nothing before it is ready."""
    url = f"http://127.0.0.1:{PORT}/api/v1/{call}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it reads its files
            return []
        raise AssertionError(f"{parameters['query']}: {error.read().decode()}") from None
    except urllib.error.URLError:
        return []


def work(cri: Cri, seconds: float) -> None:
    """Pods, commands, pulls and failures, more of them in the middle."""
    end = time.monotonic() + seconds
    living: list[str] = []
    number = 0
    while (left := end - time.monotonic()) > 0:
        number += 1
        config = pod(f"p{number}", log_directory=f"/tmp/dashboard/{number}")
        living.append(cri.run(config))
        command = ["sh", "-c", "exit 3"] if number % 7 == 0 else ["sleep", "1000"]
        made = cri.create(living[-1], container("main", command), config)
        cri.start(made)
        if number % 7:
            cri.exec(made, "true")
        if number % 10 == 0:
            cri.pull(DEBIAN if number % 20 else BUSYBOX)
            for wrong in ("registry.k8s.io/fixtures/missing:1", "registry.k8s.io/NOT-LOWER-CASE"):
                with contextlib.suppress(grpc.RpcError):
                    cri.pull(wrong)
        if len(living) > (15 if left > seconds / 2 else 4):
            cri.remove_pod(living.pop(0))
            cri.remove_pod(living.pop(0))
    for sandbox in living:
        cri.remove_pod(sandbox)


def series(target: dict[str, str], begin: float, end: float) -> list[Series]:
    """The answer to a target's query, each series with its legend."""
    query = target["expr"].replace("$__rate_interval", f"{SCRAPE_S * 10}s")
    query = query.replace("$instance", ".*").replace("$job", ".*")
    assert "$" not in query, query
    found = ask("query_range", query=query, start=str(begin), end=str(end), step=str(SCRAPE_S))
    answer = []
    for one in found:
        legend = target.get("legendFormat", "")
        for label, value in one["metric"].items():
            legend = legend.replace(f"{{{{{label}}}}}", value)
        points = [(at, float(value)) for at, value in one["values"] if value != "NaN"]
        if points:
            answer.append((legend, points))
    return answer


def shown(value: float, unit: str) -> str:
    """A value as a person reads it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    for factor, name in SCALES.get(unit, ()):
        if value >= factor:
            return f"{value / factor:.3g}{name}"
    suffix = {"reqps": " req/s", "ops": " ops/s", "s": " s", "bytes": " B"}.get(unit, "")
    return f"{value:.3g}{suffix}"


def drawn(panel: dict[str, Any], found: Sequence[Series], begin: float, end: float) -> str:
    """One panel."""
    place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"].get("unit", "short")
    x, y = place["x"] * COLUMN, TOP + place["y"] * ROW
    wide, high = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
    lines = [
        f'<g transform="translate({x},{y})">',
        f'<rect width="{wide}" height="{high}" fill="#fff" stroke="#ccc"/>',
        f'<text x="8" y="16" font-weight="bold">{html.escape(panel["title"])}</text>',
    ]
    if panel["type"] == "stat":
        texts = [f"{name}: {shown(points[-1][1], unit)}" for name, points in found]
        lines += [
            f'<text x="8" y="{36 + 16 * n}">{html.escape(text)}</text>'
            for n, text in enumerate(texts)
        ]
    else:
        lines += _graph(found, (wide, high), (begin, end), unit)
    return "".join([*lines, "</g>"])


def _graph(
    found: Sequence[Series], size: tuple[int, int], times: tuple[float, float], unit: str
) -> Iterator[str]:
    (wide, high), (begin, end) = size, times
    if not found:
        yield f'<text x="{wide / 2}" y="{high / 2}" text-anchor="middle" fill="#888">no data</text>'
        return
    left, top, bottom = 70, 26, high - 26
    most = max((value for _, points in found for _, value in points), default=0) or 1
    for part in (0.0, 0.5, 1.0):
        at = bottom - part * (bottom - top)
        yield f'<path d="M{left} {at:.0f}H{wide - 8}" stroke="#eee"/>'
        label = html.escape(shown(most * part, unit))
        yield f'<text x="{left - 6}" y="{at + 4:.0f}" text-anchor="end" fill="#666">{label}</text>'
    legend = left
    for number, (name, points) in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(
            f"{left + (at - begin) / (end - begin) * (wide - 8 - left):.0f},"
            f"{bottom - value / most * (bottom - top):.0f}"
            for at, value in points
        )
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if legend + 6 * len(name) < wide:
            yield f'<text x="{legend}" y="{high - 8}" fill="{colour}">{html.escape(name)}</text>'
            legend += 12 + 6 * len(name)


def main() -> None:
    """Work, ask, check and draw."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cri = Cri()
    cri.pull(BUSYBOX)
    with prometheus():
        begin = time.time()
        work(cri, SECONDS)
        end = time.time()
        answers = [
            [one for target in panel["targets"] for one in series(target, begin, end)]
            for panel in panels
        ]
    empty = {panel["title"] for panel, found in zip(panels, answers, strict=True) if not found}
    assert empty <= UNEVENTFUL, f"no data: {', '.join(sorted(empty - UNEVENTFUL))}"
    height = TOP + max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * ROW
    note = (
        "The panels of deploy/grafana/criagent.json: their queries, answered by a Prometheus, "
        f"{end - begin:.0f} s of a test node. Drawn by tests/page/dashboard.py, not by Grafana."
    )
    body = "\n".join(
        drawn(panel, found, begin, end) for panel, found in zip(panels, answers, strict=True)
    )
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#f6f6f6"/>'
        f'\n<text x="8" y="24" font-size="14">{html.escape(note)}</text>\n{body}\n</svg>\n'
    )
    print(f"{len(panels)} panels, of which without data: {', '.join(sorted(empty)) or 'none'}")


if __name__ == "__main__":
    main()
