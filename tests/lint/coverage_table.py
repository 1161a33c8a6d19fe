# SPDX-License-Identifier: Apache-2.0
"""Lines that the unit tier runs, per package: `python -m tests.lint.coverage_table FILE`.

FILE is what `coverage json` writes.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def package(path: str) -> str:
    """The package of a file, one level deeper in runtime and image."""
    parts = Path(path).parts[:-1]
    return ".".join(parts[: 3 if parts[1:2] in (("runtime",), ("image",)) else 2])


def table(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Package, statements, statements that ran; the sum comes last."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path, file in report["files"].items():
        for name in (package(path), "all"):
            found[name][0] += file["summary"]["num_statements"]
            found[name][1] += file["summary"]["covered_lines"]
    whole = found.pop("all")
    rows = [(name, found[name]) for name in sorted(found)]
    return [(name, lines, ran) for name, (lines, ran) in [*rows, ("all", whole)]]


def main() -> None:
    """Print the table."""
    print(f"{'package':<32}{'lines':>7}{'run':>7}{'':>6}")
    for name, lines, run in table(json.loads(Path(sys.argv[1]).read_text())):
        print(f"{name:<32}{lines:>7}{run:>7}{100 * run / max(lines, 1):>5.0f}%")


if __name__ == "__main__":
    main()
