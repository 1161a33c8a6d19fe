# SPDX-License-Identifier: Apache-2.0
"""Run fuzz targets side by side: tests/fuzz/run.py NAME… (see `make fuzz`).

FUZZ_SECONDS for each, 10 by default; SEED for the same cases again; INPUT for one kept input.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ONE = "--one"
IN_NODE = {"tar_good", "tar_hostile", "tar_layers"}  # they need root and mounts


def main(names: list[str]) -> int:
    """The exit status."""
    from tests.fuzz import frame

    seed = os.environ.get("SEED") or secrets.token_hex(4)
    seconds = float(os.environ.get("FUZZ_SECONDS") or 10)
    if names[:1] == [ONE]:
        kept = os.environ.get("INPUT")
        good = frame.replay(names[1], Path(kept)) if kept else frame.fuzz(names[1], seconds, seed)
        return 0 if good else 1
    every = {path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")}
    if names == ["--pure"]:
        names = sorted(every - IN_NODE)
    elif names == ["--in-node"]:
        names = sorted(IN_NODE)
    if unknown := set(names) - every:
        print(f"no target {', '.join(sorted(unknown))}; there are {', '.join(sorted(every))}")
        return 2

    def run(name: str) -> int:
        command = [sys.executable, "-m", "tests.fuzz.run", ONE, name]
        return subprocess.run(command, env={**os.environ, "SEED": seed}, check=False).returncode

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        failed = [name for name, code in zip(names, threads.map(run, names), strict=True) if code]
    if failed:
        print(f"failed: {', '.join(failed)} (SEED={seed})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
