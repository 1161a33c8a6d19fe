# SPDX-License-Identifier: Apache-2.0
"""Each broken node of docs/troubleshooting.md: it shows what the page says, and the page helps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drill import page
from tests.drill.breaks import BREAKS
from tests.drill.drill_node import DrillNode
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CASES = page.cases()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DrillNode]:
    """One machine for all of them: what is repaired is as good as before."""
    machine = DrillNode(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()


def test_page_and_drill_have_the_same_nodes() -> None:
    assert [case.heading for case in CASES] == list(BREAKS)
    assert len(CASES) >= 20
    assert all(case.seen and case.script for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.heading for case in CASES])
def test_what_is_seen_and_what_helps(node: DrillNode, case: page.Case) -> None:
    broken = BREAKS[case.heading]
    node.shell("journalctl --quiet --rotate --vacuum-time=1s")
    node.shell(broken.script)
    known: dict[str, str] = {}
    for place, quote in case.seen:
        known |= node.sees(place, quote)
    node.shell(page.filled(case.script, known))
    try:
        until(node.runs_a_pod, "a pod", 60)
    except AssertionError:
        pytest.fail(f"no pod runs: {node.problem}\n{node.shell('criagent doctor', check=False)}")
    for place, quote in case.seen:
        if place == "criagent doctor":
            assert page.found(quote, node.shell(place, check=False)) is None
    node.shell(broken.afterwards)
