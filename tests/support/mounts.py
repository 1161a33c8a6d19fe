# SPDX-License-Identifier: Apache-2.0
"""Mounts of host paths for the configuration of a container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.cri_client import api


def wants(*mounts: api.Mount) -> Callable[[api.ContainerConfig], object]:
    return lambda config: config.mounts.extend(mounts)


def bind(path: Path | str, target: str = "/x", **fields: object) -> api.Mount:
    return api.Mount(container_path=target, host_path=str(path), **fields)  # type: ignore[arg-type]
