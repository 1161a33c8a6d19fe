# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/ against the programs that read them."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import agent
from tests.support.cri_client import api
from tests.support.pods import Pods

pytestmark = pytest.mark.root

DEPLOY = Path(__file__).parents[2] / "deploy"
_NAME = re.compile(r"\b(?:criagent|process)_[a-z_]+\b")
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def offered() -> set[str]:
    """Every name that a query can use, samples or not."""
    with urllib.request.urlopen("http://127.0.0.1:9880/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            family.name + suffix
            for family in families
            for suffix in _SUFFIXES.get(family.type, ("",))
        }


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(pods: Pods) -> None:
    pods.running()
    dashboard = json.loads((DEPLOY / "grafana" / "criagent.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    queries += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked = {name for query in queries for name in _NAME.findall(query)}
    assert asked
    assert asked - offered() == set()
    own = {name for name in offered() if name.startswith("criagent_")}
    # the sum of a histogram has no panel; every other name of ours has one
    assert own - asked == {"criagent_rpc_seconds_sum"}


def test_the_units_pass_systemds_own_check() -> None:
    program = Path("/usr/bin/criagent")
    program.symlink_to("/usr/bin/true")
    helper = Path("/kind/bin/import-images")
    helper.parent.mkdir(parents=True)
    helper.symlink_to("/usr/bin/true")
    names = ["criagent.service", "criagent-monitors.service", "kind/criagent-images.service"]
    units = [DEPLOY / name for name in names]
    try:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        program.unlink()
        subprocess.run(["rm", "-r", "/kind"], check=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_crictl_finds_the_agent_by_its_file(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    command = ["env", "-i", "crictl", "--config", str(DEPLOY / "crictl.yaml"), "pods", "-q"]
    command[0:2] = ["/usr/bin/env", "-i", "PATH=/opt/tools"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [sandbox]


def test_pods_run_on_the_example_network(pods: Pods) -> None:
    agent.stop()
    pods.cri = agent.start(
        f'[network]\nbackend = "cni"\ncni_conf_dir = "{DEPLOY}/cni"\n'
        'cni_bin_dirs = ["/usr/lib/cni"]\n'
    )

    def with_port(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(container_port=80, host_port=8089)

    try:
        one, two = pods.sandbox(with_port), pods.sandbox()
        script = "mkdir /www; echo hello > /www/index.html; exec httpd -f -h /www"
        pods.running("sh", "-c", script, pod=one)
        asking = pods.running(pod=two)
        address = pods.cri.pod_status(one[0]).network.ip
        assert address.startswith("10.89.")
        fetch = f"until wget -q -O - http://{address}/; do :; done"
        assert pods.cri.exec(asking, "sh", "-c", fetch).stdout == b"hello\n"
        node = subprocess.run(
            ["ip", "-4", "-brief", "address", "show", "cni0"],
            capture_output=True, text=True, check=True,
        ).stdout.split()[2].partition("/")[0]  # fmt: skip
        with urllib.request.urlopen(f"http://{node}:8089/", timeout=10) as answer:
            assert answer.read() == b"hello\n"
    finally:
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        agent.stop()
        subprocess.run(["ip", "link", "del", "cni0"], check=True)
        subprocess.run(["rm", "-rf", "/var/lib/cni/networks/criagent-pods"], check=True)
        for tool in ("iptables", "ip6tables"):
            subprocess.run([tool, "-t", "nat", "-F"], check=True)
        subprocess.run("nft delete table ip nat; nft delete table ip6 nat", shell=True, check=True)
        pods.cri = agent.start()
