# SPDX-License-Identifier: Apache-2.0
"""Versions below which a program is refused, or known to be insecure; other programs have none."""

from __future__ import annotations

import pytest

from criagent.runtime.node.minimum_versions import below_floor, insecure, parse_version, too_old


@pytest.mark.parametrize(
    ("text", "floors", "below"),
    [
        ("runc version 1.3.5", ("1.3.6", "1.4.3", "1.5.0"), True),
        ("runc version 1.3.6+ds1", ("1.3.6", "1.4.3", "1.5.0"), False),
        ("runc version 1.4.2", ("1.3.6", "1.4.3", "1.5.0"), True),
        ("runc version 1.4.3", ("1.3.6", "1.4.3", "1.5.0"), False),
        ("runc version 1.2.9", ("1.3.6", "1.4.3", "1.5.0"), True),
        ("runc version 2.0", ("1.3.6", "1.4.3", "1.5.0"), False),
        ("crun version 1.28", ("1.28",), False),
        ("conmon version 2.1.1", ("2.1.2",), True),
        ("conmon version 2.1.12", ("2.1.2",), False),
    ],
)
def test_version_floors(text: str, floors: tuple[str, ...], *, below: bool) -> None:
    version = parse_version(text)
    assert version is not None
    assert below_floor(version, floors) == below


def test_too_old_names_the_version_that_would_do() -> None:
    assert too_old("conmon", "conmon version 2.0.25") == ""
    assert too_old("conmon", "no number at all") == ""
    assert "2.0.23" in too_old("conmon", "conmon version 2.0.22")
    assert "1.3.0" in too_old("crun", "crun version 1.2.99")


@pytest.mark.parametrize("kind", ["crun", "runc"])
@pytest.mark.parametrize(
    "answer",
    [
        "runsc version 0.0~20240729\nspec: 1.1.0-rc.1\n",
        "runsc version release-20240729.0\n",
        "youki version: 0.5.3\ncommit: 1.0.0\n",
        "kata-runtime  : 0.1.0\n   commit   : 1\n",
        "wrapper 0.0.1\n",
    ],
)
def test_another_program_has_no_floor_of_crun_or_runc(kind: str, answer: str) -> None:
    assert too_old(kind, answer) == insecure(kind, answer) == ""


def test_a_wrapper_that_says_the_programs_version_has_its_floor() -> None:
    assert "1.28" in insecure("crun", "wrapper 9\ncrun version 1.21\ncommit: 99.1\n")
    assert "1.1.0" in too_old("runc", "runc version 1.0.3\n")
    assert insecure("runc", "runc version 1.3.6+ds1\nspec: 1.0.2\n") == ""
