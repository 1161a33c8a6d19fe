"""Where the modules of these tests are, and their fixtures."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
for _name in ("e2e", "node", "vm/suite", "cluster"):
    if str(_TESTS / _name) not in sys.path:
        sys.path.append(str(_TESTS / _name))

from cluster_fixtures import cluster, space  # noqa: E402

__all__ = ["cluster", "space"]
