# SPDX-License-Identifier: Apache-2.0
"""Write docs/configuration.md and deploy/config.toml from criagent/config: `make reference`.

With `--check`, write nothing and say which of them differ; `make check` does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from criagent.config.text import default_text, reference_text

_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Status 1 when a file differs with `--check`."""
    texts = {"docs/configuration.md": reference_text(), "deploy/config.toml": default_text()}
    status = 0
    for name, text in texts.items():
        file = _ROOT / name
        if "--check" not in sys.argv[1:]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            print(f"{name} does not match criagent/config; run `make reference` and commit")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
