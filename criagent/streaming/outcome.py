# SPDX-License-Identifier: Apache-2.0
"""The outcome of a remote command, and terminal sizes from the client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from criagent.runtime.exec.plan import Size

_MAX_SIZE = 1024  # bytes of one resize message
_MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: an exit code, or the reason why there is none."""

    code: int = 0
    failure: str = ""

    def status(self) -> bytes:
        """The Status object of v4 and v5 (k8s.io/apimachinery, metav1.Status)."""
        document: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if self.failure:
            document |= {
                "status": "Failure",
                "message": self.failure,
                "reason": "InternalError",
                "details": {"causes": [{"message": self.failure}]},
                "code": 500,
            }
        elif self.code:
            document |= {
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": str(self.code)}]},
            }
        return json.dumps(document).encode()

    def text(self) -> str:
        """The text of the older protocols; empty for success."""
        if self.failure:
            return self.failure
        return f"command terminated with non-zero exit code: {self.code}" if self.code else ""


def parse_size(data: bytes) -> Size | None:
    """A resize message; None if it is invalid."""
    if len(data) > _MAX_SIZE:
        return None
    try:
        document = json.loads(data)
        width, height = document["Width"], document["Height"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(width) is not int or type(height) is not int:
        return None
    if not 0 < width < 65536 or not 0 < height < 65536:
        return None
    return Size(width=width, height=height)


class SizeParser:
    """Resize messages of a stream, one JSON object after the other."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> Size | None:
        """The newest size that is complete now; garbage is skipped up to the next closing brace.

        Only the last few objects are parsed: a peer may send thousands at once.
        """
        *whole, rest = data.split(b"}")
        if not whole:
            self._pending = (self._pending + rest)[: _MAX_SIZE + 1]  # more cannot be a size
            return None
        whole[0] = self._pending + whole[0]
        self._pending = rest[: _MAX_SIZE + 1]
        sizes = (parse_size(part + b"}") for part in reversed(whole[-_MOST_AT_ONCE:]))
        return next((size for size in sizes if size is not None), None)
