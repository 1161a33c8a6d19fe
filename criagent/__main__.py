# SPDX-License-Identifier: Apache-2.0
"""`python -m criagent` and the `criagent` command."""

from __future__ import annotations

import sys

from criagent.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
