# SPDX-License-Identifier: Apache-2.0
"""The alerts of deploy/prometheus: severity, words, and that each fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc import StatusCode

from criagent.base import aio
from criagent.daemon.operator_metrics import Tallies
from criagent.model.container import Reason
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database.open(tmp_path / "state.db")
    yield made
    made.close()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_rule_has_a_severity_and_says_where(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert f"| {rule['alert']} |" in PAGE


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_runbook_of_each_rule_exists_and_says_what_to_do(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    text = (FOLDER.parents[1] / page).read_text()
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    by_anchor = {
        heading.lower().replace(" ", "-"): body
        for heading, body in zip(sections[1::2], sections[2::2], strict=True)
    }
    assert anchor == rule["alert"].lower()
    assert "\n1. " in by_anchor[anchor]
    assert "`" in by_anchor[anchor]


def test_runbooks_are_of_rules_alone() -> None:
    page = (FOLDER.parents[1] / "docs" / "runbooks.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == sorted(
        (rule["alert"] for rule in RULES), key=page.index
    )


def test_both_scrape_samples_ask_the_same() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    spec = yaml.safe_load((FOLDER / "scrapeconfig.yaml").read_text())["spec"]
    assert (job["job_name"], job["scheme"]) == (spec["jobName"], spec["scheme"].lower())
    assert [one["replacement"] for one in job["relabel_configs"][:1]] == [
        one["replacement"] for one in spec["relabelings"][:1]
    ]
    down = next(rule for rule in RULES if rule["alert"] == "CriagentDown")
    named = re.search(r'job=~"([^"]+)"', down["expr"])
    assert named is not None
    assert re.fullmatch(named[1], job["job_name"])


def test_the_pod_monitor_finds_the_daemonsets_nodes_and_asks_as_the_scrape_config() -> None:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    daemonset = yaml.safe_load((FOLDER.parent / "daemonset.yaml").read_text())
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["metadata"]["namespace"] == daemonset["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    spec = yaml.safe_load((FOLDER / "scrapeconfig.yaml").read_text())["spec"]
    for key in ("authorization", "tlsConfig"):
        assert endpoint[key] == spec[key]
    assert endpoint["scheme"] == spec["scheme"].lower()
    replaced = [(one["targetLabel"], one.get("replacement")) for one in endpoint["relabelings"]]
    assert replaced == [(one["targetLabel"], one.get("replacement")) for one in spec["relabelings"]]
    # The pods have no port and are not on the node's network: the address is that of their node.
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert "ports" not in container
    assert endpoint["relabelings"][0]["sourceLabels"] == ["__meta_kubernetes_pod_host_ip"]


def test_promtool_takes_the_scrape_sample(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: `make alerts` runs this with one")
    document = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    del job["kubernetes_sd_configs"]  # which Debian builds its Prometheus without
    job["static_configs"] = [{"targets": ["192.0.2.1:9880"]}]
    text = yaml.safe_dump(document)
    for name in ("criagent.token", "criagent-ca.crt"):
        text = text.replace(f"/etc/prometheus/{name}", str(tmp_path / name))
        (tmp_path / name).touch()
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    document = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())
    fired = {
        look["alertname"]
        for test in document["tests"]
        for look in test["alert_rule_test"]
        if look["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_label_values_that_alerts_wait_for_are_there_from_the_start(db: Database) -> None:
    tallies = Tallies(SandboxStore(db), ContainerStore(db))
    assert tallies.exits == {str(reason): 0 for reason in Reason}
    codes = {code.name for code in StatusCode}
    waited_for = {
        value
        for rule in RULES
        for _, values in re.findall(r'(reason|kind|code|level)=~?"([^"]+)"', rule["expr"])
        for value in values.split("|")
    }
    known = {*map(str, Reason), *codes, *aio.FAILURE_KINDS, "warning", "error"}
    assert waited_for <= known


def test_promtool_sees_each_alert_fire_when_it_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: `make alerts` runs this with one")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
