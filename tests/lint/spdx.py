# SPDX-License-Identifier: Apache-2.0
"""The licence line of every source: `python -m tests.lint.spdx` names the files without it.

With `--write` it is put in: the first line, or the one after the interpreter's. Generated code
is checked, too: its generator writes the line. Exit status 1 when a file lacks it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE = "SPDX-License-Identifier: Apache-2.0"
_SUFFIXES = {".py": "#", ".pyi": "#", ".nft": "#", ".go": "//", ".c": "//"}
_NAMES = {"Makefile": "#", "Dockerfile": "#", "tests/nodes/vm/guest/install": "#"}


def comment(path: str, content: bytes) -> str:
    """What starts a comment in the file; "" where it needs no licence line."""
    if content.startswith(b"#!"):
        return "#"
    name = _NAMES.get(path) or _NAMES.get(Path(path).name)
    return name or _SUFFIXES.get(Path(path).suffix, "")


def written(content: bytes, mark: str) -> bytes:
    """The content with the line."""
    head, rest = b"", content
    if content.startswith(b"#!"):
        head, _, rest = content.partition(b"\n")
        head += b"\n"
    return head + f"{mark} {LINE}\n".encode() + rest


def main() -> int:
    """Check, or write with `--write`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    lacking = 0
    for path in filter(None, listed.stdout.decode().split("\0")):
        file = ROOT / path
        if not file.is_file() or file.is_symlink():
            continue
        content = file.read_bytes()
        mark = comment(path, content)
        if not mark or LINE.encode() in b"\n".join(content.split(b"\n", 2)[:2]):
            continue
        if "--write" in sys.argv[1:]:
            if "_pb2" not in path:  # its generator writes it
                file.write_bytes(written(content, mark))
            continue
        print(f"{path}: no licence line; run `python -m tests.lint.spdx --write`")
        lacking += 1
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
