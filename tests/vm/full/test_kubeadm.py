# SPDX-License-Identifier: Apache-2.0
# vm: memory=6144 limit=7200 programs=kubelet,kubeadm,kubectl,control-plane.tar seconds=1500
"""kubeadm init with docs/kubeadm.md's configuration, a pod and a Service in it, kubeadm reset.

The images of the control plane are made from Go modules (tests/nodes/kind). The configuration
gets longer limits and no leader election, because the machine is emulated; nothing of the
runtime's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import BUSYBOX, Cri
from tests.support.kubeadm_node import SLOW, Cluster, write_patches
from tests.support.units import container_units, failed_units, systemctl

pytestmark = pytest.mark.timeout(5400)

TOOLS = Path("/opt/tools/bin")
# This machine's own name server is on loopback: CoreDNS would ask itself, and ends when it does.
RESOLV_CONF = Path("/etc/upstream.conf")
SOCKET = "unix:///run/criagent/criagent.sock"
# kubeadm's own drop-in of the kubelet's unit, in short.
KUBELET = """[Unit]
After=criagent.service network-online.target
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
--kubeconfig=/etc/kubernetes/kubelet.conf"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=/opt/tools/bin/kubelet $KUBELET_KUBECONFIG_ARGS --config=/var/lib/kubelet/config.yaml \
$KUBELET_KUBEADM_ARGS
Restart=always
RestartSec=10
KillMode=process
[Install]
WantedBy=multi-user.target
"""


def documented() -> str:
    """The configuration of the first node, as the documentation shows it, on a slow machine."""
    text = Path("/src/docs/kubeadm.md").read_text().split("## The first node\n")[1]
    lines = text.split("## ")[0].splitlines()
    shown = "\n".join(line[4:] for line in lines if line.startswith("    "))
    documents = shown.split("---\n")
    assert len(documents) == len(SLOW)
    for number, (kind, more) in enumerate(SLOW.items()):
        assert f"kind: {kind}" in documents[number]
        documents[number] = documents[number].rstrip("\n") + "\n" + more
    documents[-1] += f"resolvConf: {RESOLV_CONF}\n"
    return "---\n".join(documents)


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Not between these tests: the last one looks."""


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    """The cluster's own."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node that kubeadm has made; the times of its steps are printed."""
    start = time.monotonic()

    def took(what: str) -> None:
        print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

    made = Cluster("/etc/kubernetes/admin.conf")
    made.run("criagent", "image", "import", str(TOOLS / "control-plane.tar"))
    took("images imported")
    Path("/etc/systemd/system/kubelet.service").write_text(KUBELET)
    write_patches()
    RESOLV_CONF.write_text("nameserver 10.0.2.3\n")
    Path("/root/kubeadm.yaml").write_text(documented())
    systemctl("daemon-reload")
    systemctl("enable", "kubelet")
    print(made.run("kubeadm", "config", "validate", "--config=/root/kubeadm.yaml"))
    words = ["kubeadm", "init", "--config=/root/kubeadm.yaml", "--skip-token-print"]
    # The machine has one processor, and its /boot, with the kernel's configuration, is empty. The
    # add-ons follow when the start's load is over: their calls have ten seconds each.
    words += ["--ignore-preflight-errors=NumCPU,SystemVerification", "--skip-phases=addon"]
    print(made.run(*words, limit_s=5000))
    took("kubeadm init")
    made.until(made.is_ready, "a Ready node")
    took("the node is Ready")
    made.apply_addons("/root/kubeadm.yaml")
    took("the add-ons are applied")
    made.kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-")
    yield made
    took("all")


def test_every_pod_of_the_control_plane_runs(cluster: Cluster) -> None:
    """Static pods, kube-proxy and CoreDNS, on the runtime that the node names."""
    runtime = "{.items[0].status.nodeInfo.containerRuntimeVersion}"
    assert cluster.kubectl("get", "nodes", "-o", f"jsonpath={runtime}").startswith("criagent://")
    cluster.until(cluster.control_plane_is_ready, "readiness of the control plane's pods")
    print(cluster.kubectl("get", "pods", "-A", "-o", "wide"))


def test_a_pod_is_scheduled_and_reaches_a_service(cluster: Cluster) -> None:
    """The pod has an address of the node's pod CIDR; kube-proxy and CoreDNS serve it."""
    cluster.kubectl("run", "one", f"--image={BUSYBOX}", "--", "sleep", "100000")
    cluster.until(lambda: cluster.pods("default").get("one"), "the pod")
    pod = json.loads(cluster.kubectl("get", "pod", "one", "-o", "json"))
    assert pod["status"]["podIP"].startswith("10.244.0.")
    assert cluster.kubectl("exec", "one", "--", "echo", "hello") == "hello\n"
    # The API server's Service, by its address and by its name; without input it just connects.
    cluster.kubectl("exec", "one", "--", "nc", "-w", "120", "10.96.0.1", "443")
    name = "kubernetes.default.svc.cluster.local"
    assert "10.96.0.1" in cluster.kubectl("exec", "one", "--", "nslookup", name)
    cluster.kubectl("delete", "pod", "one", "--grace-period=1")


def test_reset_leaves_nothing_of_the_pods(cluster: Cluster) -> None:
    """No pod, scope, slice, mount or volume directory; the agent goes on."""
    print(cluster.run("kubeadm", "reset", "--force", f"--cri-socket={SOCKET}"))
    cri = Cri()
    assert [sandbox.metadata.name for sandbox in cri.pods()] == []
    assert cri.containers() == []
    cri.close()
    assert container_units() == []
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert [at for at in mounts if at.startswith(("/var/lib/kubelet", "/run/criagent/"))] == []
    assert list(Path("/var/lib/kubelet/pods").glob("*")) == []
    assert failed_units() == []
    events = Path("/sys/fs/cgroup/kubepods.slice/cgroup.events")
    assert not events.exists() or "populated 0" in events.read_text()
