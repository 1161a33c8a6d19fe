# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agent as its page has them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

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
