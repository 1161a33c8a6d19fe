# SPDX-License-Identifier: Apache-2.0
"""Programs that storage drivers run: in English, and refused by the package that has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from criagent.base.errors import UnsupportedError
from criagent.process.child import Ended, Options, run

_PATH = f"{os.defpath}:/usr/sbin:/sbin:/usr/local/sbin"
_IN_ENGLISH = Options(env={"PATH": _PATH, "LC_ALL": "C"})


async def tool(
    argv: Sequence[str | Path], package: str, *, limit_s: float | None = None, keep: int = 1 << 20
) -> Ended:
    """Run `argv` to its end. Raises UnsupportedError with `package` when it is not installed,
    TimeoutError, OSError."""
    try:
        return await run(argv, limit_s=limit_s, keep=keep, options=_IN_ENGLISH)
    except FileNotFoundError as exc:
        raise UnsupportedError(f"{argv[0]} is missing; install {package}") from exc
