"""Metrics of the agent over HTTP, and of pods over the CRI, as others read them."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import agent
import pytest
from conftest import Pods
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

pytestmark = pytest.mark.root

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ADDRESS = "http://127.0.0.1:9880/metrics"


def scrape() -> dict[str, Metric]:
    """The agent's own families by the name that queries use."""
    with urllib.request.urlopen(ADDRESS, timeout=10) as answer:
        text = answer.read().decode()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("criagent_")
    }


def value(name: str, labels: Mapping[str, str] | None = None) -> float:
    """One sample; 0 where the label has not been seen."""
    for sample in scrape()[name].samples:
        if sample.name == name and (labels or {}).items() <= sample.labels.items():
            return float(sample.value)
    return 0.0


def test_the_page_lists_every_name_with_type_and_labels(pods: Pods) -> None:
    pods.running()
    listed = {
        name: (kind, {label.strip() for label in labels.split(",") if label.strip()})
        for name, kind, labels in re.findall(
            r"^\| (criagent_\w+) \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE
        )
    }
    told = scrape()
    assert {name: family.type for name, family in told.items()} == {
        name: kind for name, (kind, _) in listed.items()
    }
    for name, family in told.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= listed[name][1], name


def test_gauges_and_counters_follow_a_life(pods: Pods) -> None:
    started = value("criagent_container_starts_total")
    failed = value("criagent_container_exits_total", {"reason": "Error"})
    row = pods.running("sh", "-c", "exit 3")
    until(lambda: pods.cri.status(row).finished_at > 0, "the exit")
    assert value("criagent_container_starts_total") == started + 1
    assert value("criagent_container_exits_total", {"reason": "Error"}) == failed + 1
    assert value("criagent_containers", {"state": "exited"}) == 1
    assert value("criagent_sandboxes", {"state": "ready"}) == 1
    pods.cri.remove_pod(pods.cri.pods()[0].id)
    assert value("criagent_sandboxes", {"state": "ready"}) == 0
    assert value("criagent_condition", {"type": "NetworkReady"}) == 1
    assert value("criagent_ready") == 1


def test_a_restart_counts_no_exit_again(pods: Pods) -> None:
    row = pods.running("true")
    until(lambda: pods.cri.status(row).finished_at > 0, "the exit")
    agent.stop()
    pods.cri = agent.start()
    assert value("criagent_container_exits_total", {"reason": "Completed"}) == 0
    assert value("criagent_containers", {"state": "exited"}) == 1
    assert value("criagent_recovery_seconds") > 0
