# SPDX-License-Identifier: Apache-2.0
"""The CNI backend with Debian's own plug-ins: a bridge of their making, host-local addresses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.mapped import mapped
from tests.support.node_state import node_state
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

DIRECTORY = Path("/etc/cni/net.d")
FILE = DIRECTORY / "10-test.conflist"
CONFIG = '[network]\nbackend = "cni"\ncni_timeout_s = 3.0\n'
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "test",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni-test",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.77.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/cni-test",
            },
        },
    ],
}


@pytest.fixture
def cni(pods: Pods) -> Iterator[Pods]:
    """An agent whose pods are on CNI networks; the directory is empty at first."""
    agent.stop()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    pods.cri = agent.start(CONFIG)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    FILE.unlink(missing_ok=True)
    subprocess.run(["ip", "link", "del", "cni-test"], check=False, capture_output=True)
    agent.start().close()


def condition(cri: Cri) -> api.RuntimeCondition:
    status = cri.runtime.Status(api.StatusRequest()).status
    return next(c for c in status.conditions if c.type == "NetworkReady")


def test_readiness_follows_the_directory(cni: Pods) -> None:
    assert not condition(cni.cri).status
    assert condition(cni.cri).reason == "NetworkPluginNotReady"
    assert str(DIRECTORY) in condition(cni.cri).message
    FILE.write_text("{broken")
    assert "is not valid JSON" in condition(cni.cri).message
    with pytest.raises(grpc.RpcError):
        cni.sandbox()
    FILE.write_text(json.dumps(NETWORK).replace("bridge", "../../bin/sh", 1))
    assert "../../bin/sh" in condition(cni.cri).message
    FILE.write_text(json.dumps(NETWORK).replace('"bridge"', '"no-such-plugin"', 1))
    assert "no-such-plugin" in condition(cni.cri).message
    FILE.write_text(json.dumps(NETWORK))
    until(lambda: condition(cni.cri).status, "readiness", 1)


def test_pods_get_addresses_and_give_them_back(cni: Pods) -> None:
    FILE.write_text(json.dumps(NETWORK))
    sandbox, config = cni.sandbox()
    container_id = cni.running(pod=(sandbox, config))
    address = cni.cri.pod_status(sandbox).network.ip
    assert address.startswith("10.77.0.")
    assert address.encode() in cni.cri.exec(container_id, "ip", "addr").stdout
    assert cni.cri.exec(container_id, "ping", "-c", "1", "-W", "2", "10.77.0.1").exit_code == 0
    assert Path("/run/cni-test/test", address).exists()
    cni.cri.stop_pod(sandbox)
    assert not Path("/run/cni-test/test", address).exists()


def test_the_rules_of_the_builtin_network_are_gone(cni: Pods) -> None:
    """So that they have no say about bridges of plugins."""
    FILE.write_text(json.dumps(NETWORK))
    container_id = cni.running()
    tables = subprocess.check_output(["nft", "list", "tables"], text=True)
    assert "criagent" not in tables
    sandbox = next(one.pod_sandbox_id for one in cni.cri.containers() if one.id == container_id)
    address = cni.cri.pod_status(sandbox).network.ip
    # Addresses that a pod takes for itself are between it and the plugins.
    inside = ["nsenter", f"--net=/run/criagent/sandboxes/{sandbox}/ns/net"]
    subprocess.run([*inside, "ip", "addr", "add", "10.77.0.200/24", "dev", "eth0"], check=True)
    ping = ["busybox", "ping", "-c", "1", "-W", "5", "-I"]
    for source in (address, "10.77.0.200"):
        subprocess.run([*inside, *ping, source, "10.77.0.1"], check=True)


def test_bandwidth_that_is_none_is_the_requests_fault(cni: Pods) -> None:
    FILE.write_text(json.dumps(NETWORK))
    annotations = {"kubernetes.io/ingress-bandwidth": "lots"}
    with pytest.raises(grpc.RpcError) as caught:
        cni.sandbox(lambda config: config.annotations.update(annotations))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "kubernetes.io/ingress-bandwidth" in (caught.value.details() or "")
    assert cni.cri.pods() == []


def test_a_pod_with_a_user_namespace_is_on_the_network_like_others(cni: Pods) -> None:
    FILE.write_text(json.dumps(NETWORK))
    sandbox, config = cni.sandbox(mapped())
    container_id = cni.running(pod=(sandbox, config))
    address = cni.cri.pod_status(sandbox).network.ip
    assert address.startswith("10.77.0.")
    assert address.encode() in cni.cri.exec(container_id, "ip", "addr", "show", "eth0").stdout
    assert cni.cri.exec(container_id, "ping", "-c", "1", "-W", "5", "10.77.0.1").exit_code == 0
    cni.cri.remove_pod(sandbox)
    assert not Path(f"/run/cni-test/test/{address}").exists()


def test_teardown_follows_the_row_when_the_configuration_is_gone(cni: Pods) -> None:
    FILE.write_text(json.dumps(NETWORK))
    sandbox, _ = cni.sandbox()
    address = cni.cri.pod_status(sandbox).network.ip
    FILE.unlink()
    agent.stop()
    cni.cri = agent.start()  # the built-in backend is the default again
    assert cni.cri.pod_status(sandbox).network.ip == address
    cni.cri.remove_pod(sandbox)
    assert not Path("/run/cni-test/test", address).exists()


def test_pods_of_the_built_in_network_keep_it_and_leave_nothing(pods: Pods) -> None:
    """The node has CNI networks from then on; the rules go with the last pod that needs them."""
    sandbox, config = pods.sandbox(lambda c: c.port_mappings.add(host_port=7380, container_port=80))
    script = "mkdir /www; echo page > /www/index.html; exec httpd -f -h /www"
    pods.running("sh", "-c", script, pod=(sandbox, config))
    try:
        agent.stop()
        pods.cri = agent.start(CONFIG)
        page = ["curl", "-s", "--max-time", "2", "http://127.0.0.1:7380/"]
        until(lambda: subprocess.run(page, capture_output=True, check=False).stdout, "the page")
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        until(lambda: "7380" in rules(), "the rules")
        pods.cri.remove_pod(sandbox)
        assert "7380" not in rules()
        until(lambda: node_state()["addresses"] == [], "the release of addresses")
        agent.stop()
        pods.cri = agent.start(CONFIG)
        assert rules() == ""
    finally:
        agent.stop()
        pods.cri = agent.start()


def rules() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


def test_a_plugin_that_hangs_is_killed_and_undone(cni: Pods) -> None:
    plugin = Path("/opt/cni/bin/hangs")
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text(
        '#!/bin/sh\nif [ "$CNI_COMMAND" = ADD ]; then sleep 6543 & wait; fi\n'
        "echo $CNI_COMMAND >> /run/hangs.log\n"
    )
    plugin.chmod(0o755)
    plugins = [{"type": "hangs"}]
    FILE.write_text(json.dumps({**NETWORK, "plugins": plugins}))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            cni.sandbox()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert '"hangs"' in (caught.value.details() or "")
        assert "DEL" in Path("/run/hangs.log").read_text()
        assert subprocess.run(["pgrep", "-f", "sleep 6543"], check=False).returncode == 1
        assert cni.cri.pods() == []
    finally:
        plugin.unlink()
        Path("/run/hangs.log").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "output",
    [
        "not json",
        "[]",
        "{}",
        '{"ips": [{"address": "300.1.1.1/24"}]}',
        '{"ips": [7]}',
        '{"ips": 5}',
    ],
)
def test_malformed_results_fail_the_pod(cni: Pods, output: str) -> None:
    plugin = Path("/opt/cni/bin/odd")
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text(f"#!/bin/sh\ncat <<'E'\n{output}\nE\n")
    plugin.chmod(0o755)
    FILE.write_text(json.dumps({**NETWORK, "plugins": [{"type": "odd"}]}))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            cni.sandbox()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "CNI" in (caught.value.details() or "")
        assert cni.cri.pods() == []
    finally:
        plugin.unlink()
