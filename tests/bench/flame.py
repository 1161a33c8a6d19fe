# SPDX-License-Identifier: Apache-2.0
"""Where the CPU time of one pod goes: `make flame` runs this and writes docs/pictures/pod-up.svg.

Needs perf and py-spy on PATH. Pods start one after the other in two test nodes: in the first perf
records the agent with all that it starts, in the second py-spy records the agent's Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.flame_fold import folded
from tests.bench.flame_svg import drawn

CHECKOUT = Path(__file__).parents[2]
PICTURE = CHECKOUT / "docs/pictures/pod-up.svg"
PODS = 100
RATE_HZ = 1999
_IN_NODE = "/src/build/flame"


def main() -> int:
    spy = shutil.which("py-spy")
    if spy is None or shutil.which("perf") is None:
        print("make flame: perf (Debian: linux-perf) or py-spy (pip) is not on PATH")
        return 2
    work = CHECKOUT / "build/flame"
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(spy, work / "py-spy")
    with _pods() as (node, agent):
        _perf(node, agent, work)
    with _pods(f"{_IN_NODE}/py-spy", f"{_IN_NODE}/python.raw") as (node, _):
        _go(node)
    script = subprocess.run(
        ["perf", "script", "-i", work / "perf.data", "-F", "comm,pid,tid,ip,sym,dso"],
        check=True, capture_output=True, text=True, errors="replace",
    ).stdout  # fmt: skip
    root = folded(script, (work / "python.raw").read_text(), agent, 1000 / RATE_HZ / PODS)
    for frame in sorted(root.within.values(), key=lambda f: -f.value):
        kernel = frame.within.get("kernel")
        print(f"{frame.name:45}{frame.value:7.2f} ms, in the kernel "
              f"{kernel.value if kernel else 0:.2f}")  # fmt: skip
    title = f"CPU time of one pod up: {root.value:.1f} ms (mean of {PODS} pods that start in turn)"
    PICTURE.write_text(drawn(root, title))
    print(f"written: {PICTURE.relative_to(CHECKOUT)}")
    return 0


@contextmanager
def _pods(*spy: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A node in which pods are about to start, with the agent's pid."""
    command = ["tests/node/up", "python3", "-m", "tests.bench.flame_pods", str(PODS), *spy]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:
        _expect(node, "start")
        yield node, next(pid for pid in _below(node.pid) if _is_agent(pid))
        _answer(node)
    if node.returncode:
        raise SystemExit(f"the test node failed with status {node.returncode}")


def _perf(node: subprocess.Popen[str], agent: int, work: Path) -> None:
    """Record while pods start; perf says by its control pipe (--control) that it has begun."""
    control, asked = os.pipe()
    answered, ack = os.pipe()
    command = ["perf", "record", "--quiet", "-o", str(work / "perf.data"), "-F", str(RATE_HZ), "-g"]
    command += ["-p", str(agent), "--delay=-1", f"--control=fd:{control},{ack}"]
    with subprocess.Popen(command, pass_fds=(control, ack)) as perf:
        os.close(control)
        os.close(ack)
        os.write(asked, b"enable\n")
        if not os.read(answered, 16).startswith(b"ack"):
            raise SystemExit("perf ended before it had begun")
        _go(node)
        perf.send_signal(signal.SIGINT)
    os.close(asked)
    os.close(answered)


def _go(node: subprocess.Popen[str]) -> None:
    """Let the pods start; returns when all have."""
    _answer(node)
    _expect(node, "end")


def _expect(node: subprocess.Popen[str], word: str) -> None:
    assert node.stdout is not None
    while (line := node.stdout.readline()) and line.strip() != word:
        print(line, end="")
    if not line:
        raise SystemExit(f"the test node ended before '{word}'")


def _answer(node: subprocess.Popen[str]) -> None:
    assert node.stdin is not None
    node.stdin.write("\n")
    node.stdin.flush()


def _below(pid: int) -> Iterator[int]:
    """The descendants of a process."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from _below(child)


def _is_agent(pid: int) -> bool:
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"criagent" in argv and b"serve" in argv


if __name__ == "__main__":
    sys.exit(main())
