# SPDX-License-Identifier: Apache-2.0
"""The limit of a writable layer: of the node, or of an annotation that is allowed."""

from __future__ import annotations

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.config.storage_section import LIMIT_ANNOTATION
from criagent.model.container import ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxMetadata, SandboxSpec
from criagent.runtime.spec.layer_limits import LayerLimits, quantity

NODE = 5_000_000


def limit(*, allowed: bool, of_pod: dict[str, str], own: dict[str, str]) -> int:
    return LayerLimits(default_bytes=NODE, allowed=allowed).of(
        SandboxSpec(metadata=SandboxMetadata(name="p", uid="", namespace=""), annotations=of_pod),
        ContainerSpec(metadata=ContainerMetadata(name="main"), image="i", annotations=own),
    )


@pytest.mark.parametrize(
    ("of_pod", "own", "size"),
    [
        ({}, {}, NODE),
        ({LIMIT_ANNOTATION: "1Gi"}, {}, 1 << 30),
        ({LIMIT_ANNOTATION: "1Gi", f"{LIMIT_ANNOTATION}.main": "2k"}, {}, 2000),
        ({LIMIT_ANNOTATION: "1Gi", f"{LIMIT_ANNOTATION}.other": "2k"}, {}, 1 << 30),
        ({f"{LIMIT_ANNOTATION}.main": "2k"}, {LIMIT_ANNOTATION: "7"}, 7),
    ],
)
def test_the_nearest_annotation_counts_if_it_is_allowed(
    of_pod: dict[str, str], own: dict[str, str], size: int
) -> None:
    assert limit(allowed=True, of_pod=of_pod, own=own) == size
    assert limit(allowed=False, of_pod=of_pod, own=own) == NODE


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("1.5Ki", 1536), ("0.1", 1), ("10G", 10**10), ("7Ei", 7 << 60)]
)
def test_a_size_is_a_quantity_of_kubernetes(text: str, size: int) -> None:
    assert quantity("a", text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0.0Gi", "-1", "1 Gi", "1gi", "1K", "8Ei", "9" * 40, "¹"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a size above zero"):
        quantity("a", text)
