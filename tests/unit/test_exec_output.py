"""How two streams share the room of one answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from criagent.runtime.exec_sync import shared

_BYTES = st.integers(0, 1000)


@given(_BYTES, _BYTES, _BYTES)
def test_what_fits_is_kept_and_neither_stream_starves(stdout: int, stderr: int, limit: int) -> None:
    kept_output, kept_errors = shared(stdout, stderr, limit)
    assert kept_output + kept_errors == min(stdout + stderr, limit)
    assert min(stdout, limit // 2) <= kept_output <= stdout
    assert min(stderr, limit // 2) <= kept_errors <= stderr
