# SPDX-License-Identifier: Apache-2.0
"""Two commits on one machine in turn: `make bench-compare BASE=commit` runs this.

The new side is this checkout as it is, or the commit HEAD. Both sides run this checkout's benchmark
in test nodes of one and the same root; which side goes first in a round is drawn by a seed that is
printed. Exits with 1 when a figure has become worse beyond noise and threshold, with 2 when there
is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.judge import LEAST_ROUNDS, change

CHECKOUT = Path(__file__).parents[2]
_OUTCOME = Path("build/bench.json")  # of measure.py, in its checkout

Row = dict[str, object]


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    print(f"seed {seed}, {options.rounds} rounds, base {options.base}, "
          f"new {options.head or 'this checkout'}", flush=True)  # fmt: skip
    draw = random.Random(seed)
    root = subprocess.run(
        [CHECKOUT / "tests/nodes/chroot/build-root"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    with _worktree(options.base) as base, _new_side(options.head) as new:
        sides = [base, new]
        runs: dict[Path, list[list[Row]]] = {base: [], new: []}
        for number in range(options.rounds):
            for side in draw.sample(sides, 2):
                runs[side].append(_measure(side, root))
            print(f"round {number + 1} of {options.rounds} is done", flush=True)
        return report(runs[base], runs[new], options.threshold / 100)


def report(old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]], threshold: float) -> int:
    """Print a table of all figures that both have; 1 when one is worse, otherwise 0."""
    print(f"\n{'':46}{'base':>10}{'new':>10}  ratio  99 % confidence")
    worse = 0
    series = [_series(old), _series(new)]
    for name in (name for name in series[1] if name in series[0]):
        before, after = (found[name] for found in series)
        least = bool(next(row for row in new[0] if row["name"] == name)["least"])
        moved = change(before, after)
        verdict = ""
        if moved.worse(threshold, least=least):
            verdict = "WORSE"
            worse += 1
        elif moved.better(least=least):
            verdict = "better"
        low, high = sorted((moved.low, moved.high))
        print(
            f"{name:46}{_median(before):10.2f}{_median(after):10.2f}"
            f"{moved.ratio:7.3f}  {low:.3f} to {high:.3f}  {verdict}".rstrip()
        )
    print(
        f"\n{worse} figures are worse by more than {threshold:.0%}" if worse else "\nnone is worse"
    )
    return 1 if worse else 0


def _series(runs: Sequence[Sequence[Row]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for rows in runs:
        for row in rows:
            found.setdefault(str(row["name"]), []).append(float(str(row["value"])))
    return {name: values for name, values in found.items() if len(values) == len(runs)}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[-1 - len(ordered) // 2]) / 2


def _measure(side: Path, root: str) -> list[Row]:
    outcome = side / _OUTCOME
    outcome.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "CRIAGENT_NODE_ROOT": root,
        "CRIAGENT_ARGS": "--log-level warning",
    }
    command = [str(side / "tests/node/up"), "python3", "-m", "tests.bench.measure"]
    done = subprocess.run(
        command, cwd=side, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        print(f"the benchmark failed in {side}", file=sys.stderr)
        sys.exit(2)
    rows: list[Row] = json.loads(outcome.read_text())
    return rows


@contextmanager
def _new_side(head: str) -> Iterator[Path]:
    if not head:
        yield CHECKOUT
        return
    with _worktree(head) as checkout:
        yield checkout


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """A checkout of `commit` with this checkout's benchmark, so that both measure the same."""
    place = Path(tempfile.mkdtemp(prefix="criagent-compare-", dir="/var/tmp"))
    side = place / "checkout"
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    try:
        command = [*git, "add", "--quiet", "--detach", str(side), commit]
        add = subprocess.run(command, check=False)
        if add.returncode:
            sys.exit(2)  # git has said why
        for part in ("tests/bench", "tests/support"):
            shutil.rmtree(side / part, ignore_errors=True)
            shutil.copytree(CHECKOUT / part, side / part)
        yield side
    finally:
        if side.exists():
            subprocess.run([*git, "remove", "--force", str(side)], check=False)
        place.rmdir()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-compare")
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--head", default="", help="the new commit; this checkout if not given")
    parser.add_argument("--rounds", type=int, default=8, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--threshold", type=float, default=5, help="percent beyond the noise")
    parser.add_argument("--seed", type=int, help="of the order of the sides")
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        parser.error(
            f"{options.rounds} rounds say nothing with confidence; use {LEAST_ROUNDS} or more"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
