# SPDX-License-Identifier: Apache-2.0
"""Platforms match and are ordered as containerd's own module has it; the host states its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from criagent.image.documents.platforms import Platform, arm_variant, rank

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "platforms.json").read_text())[
    "cases"
]


def platform(value: str | dict[str, Any]) -> Platform:
    if isinstance(value, str):
        system, architecture, variant = ([*value.split("/"), "", ""])[:3]
        return Platform(architecture, system, variant)
    features = tuple(value.get("os.features", ()))
    return Platform(value["architecture"], value["os"], value["variant"], features)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case[0]} of {len(case[1])}")
def test_platforms_match_in_the_order_of_containerd(case: list[Any]) -> None:
    host, entries, wanted = case
    ranks = [rank(platform(entry), platform(host)) for entry in entries]
    fitting = [at for at, found in enumerate(ranks) if found is not None]
    assert sorted(fitting, key=lambda at: ranks[at] or 0) == wanted


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "variant"),
    [
        ("CPU architecture: 8\n", "aarch64", "v8"),
        ("", "aarch64", "v8"),
        ("CPU architecture: AArch64\n", "aarch64", "v8"),
        ("model name : ARMv7 Processor\nCPU architecture: 7\n", "armv7l", "v7"),
        ("model name : ARMv6-compatible processor\nCPU architecture: 7\n", "armv6l", "v6"),
        ("CPU architecture: 5TEJ\n", "armv5tel", "v5"),
        ("CPU architecture: ?(12)\n", "armv7l", "v7"),
        ("", "armv7l", "v7"),
        ("", "armv8l", "v8"),
        ("CPU architecture: x\n", "armv7l", ""),
        ("", "arm", ""),
    ],
)
def test_the_variant_of_an_arm_machine(cpuinfo: str, machine: str, variant: str) -> None:
    assert arm_variant(cpuinfo, machine) == variant


def test_long_names_are_cut_where_people_read_them() -> None:
    assert len(str(Platform("a" * 5000, "o" * 5000, "v" * 5000))) < 200
    assert str(Platform()) == "unknown"
