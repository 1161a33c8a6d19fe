# SPDX-License-Identifier: Apache-2.0
"""The span of a call as the boundary sees it, without OpenTelemetry: most nodes export none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# https://www.w3.org/TR/trace-context/, 3.2: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-.{2}")


class CallSpan:
    """A span that records nothing, and the block of its call. `trace_id` is its trace, or the
    caller's; "" = there is none.
    """

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def recording(self) -> bool:
        """Whether the span will be exported."""
        return False

    def about(self, facts: Mapping[str, str]) -> None:
        """Name pod, container and image."""

    def ended(self, code: int, text: str) -> None:
        """The call's gRPC status; every failure but a cancellation is an error of the span."""

    def stages(self, key: str) -> Callable[[str], None]:
        """Listens to the stages of an owner that this call starts: a child span for each."""
        del key
        return lambda _: None


def caller_trace(metadata: Mapping[str, str | bytes]) -> str:
    """The trace that a call names as its caller's; "" = none that is valid."""
    named = metadata.get("traceparent", "")
    found = _TRACEPARENT.match(named) if isinstance(named, str) else None
    return found[1] if found else ""
