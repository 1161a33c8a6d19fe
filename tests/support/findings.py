# SPDX-License-Identifier: Apache-2.0
"""Findings of the doctor: the one of a name, and what it says."""

from __future__ import annotations

from collections.abc import Iterable

from criagent.doctor import Finding


def one(found: Iterable[Finding], name: str) -> Finding:
    """The only finding of that name; everything that is not ok has a cure."""
    all_found = list(found)
    assert all(entry.cure for entry in all_found if entry.level != "ok")
    assert not any(entry.cure for entry in all_found if entry.level == "ok")
    (finding,) = [entry for entry in all_found if entry.name == name]
    return finding


def judged(finding: Finding, level: str, part: str) -> None:
    assert (finding.level, part in finding.text + finding.cure) == (level, True), finding
