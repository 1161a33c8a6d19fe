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
        pytest.skip("no promtool here (Debian's package prometheus has it)")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
