# SPDX-License-Identifier: Apache-2.0
"""The fixtures of `cluster_fixtures`, which the VM imports by that name."""

from __future__ import annotations

from tests.cluster.cluster_fixtures import cluster, space

__all__ = ["cluster", "space"]
