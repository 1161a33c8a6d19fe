# SPDX-License-Identifier: Apache-2.0
"""The storage driver of the node's agent (CRIAGENT_STORAGE), for tests that depend on it."""

from __future__ import annotations

import os

import pytest

DRIVER = os.environ.get("CRIAGENT_STORAGE", "overlay")

# For tests that change a layer's files at `snapshots/<n>/fs`, where it has its own and no others.
layers_are_trees = pytest.mark.skipif(
    DRIVER not in {"overlay", "fuse-overlayfs"},
    reason=f"layers of {DRIVER} are damaged in tests/storage",
)
