# SPDX-License-Identifier: Apache-2.0
"""Settings of all unit tests."""

from __future__ import annotations

import gc

from hypothesis import settings

# How long an example takes says more of the machine's load than of the code. No failed example is
# recorded: the database would cost a write for each test, and a found bug gets a test of its own.
settings.register_profile("any-machine", deadline=None, database=None)
settings.load_profile("any-machine")


def pytest_collection_finish() -> None:
    """Hide modules and tests from the garbage collector; some tests need full collections."""
    gc.collect()
    gc.freeze()
