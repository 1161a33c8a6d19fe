# SPDX-License-Identifier: Apache-2.0
"""`in_thread` of criagent/kernel/namespaces.py: its result and its errors."""

from __future__ import annotations

import threading

import pytest

from criagent.kernel.namespaces import in_thread


def test_the_result_comes_from_another_thread() -> None:
    assert in_thread(threading.get_ident) != threading.get_ident()


@pytest.mark.timeout(10)
def test_an_error_is_raised_by_the_caller() -> None:
    def fail() -> None:
        raise OSError("no such sysctl")

    with pytest.raises(OSError, match="no such sysctl"):
        in_thread(fail)
