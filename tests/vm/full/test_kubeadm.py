# vm: memory=6144 limit=7200 programs=kubelet,kubeadm,kubectl,control-plane.tar
"""kubeadm init with docs/kubeadm.md's configuration, a pod and a Service in it, kubeadm reset.

The images of the control plane are made from Go modules (tests/kind). The configuration gets longer
limits and no leader election, because the machine is emulated; nothing of the runtime's.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cri_client import BUSYBOX, Cri
from units import container_units, failed_units, systemctl
from waiting import until

pytestmark = pytest.mark.timeout(5400)

TOOLS = Path("/opt/tools/bin")
SOCKET = "unix:///run/criagent/criagent.sock"
LIMIT_S = 1200
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
SLOW = {
    "InitConfiguration": """timeouts:
  controlPlaneComponentHealthCheck: 40m
  kubeletHealthCheck: 20m
  kubernetesAPICall: 20m
  etcdAPICall: 20m
""",
    "ClusterConfiguration": """kubernetesVersion: v1.36.3
controllerManager:
  extraArgs:
  - {name: leader-elect, value: "false"}
  - {name: node-monitor-grace-period, value: 10m}
scheduler:
  extraArgs:
  - {name: leader-elect, value: "false"}
etcd:
  local:
    extraArgs:
    - {name: heartbeat-interval, value: "1000"}
    - {name: election-timeout, value: "20000"}
""",
    "KubeletConfiguration": "runtimeRequestTimeout: 10m\n",
}


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
    return "---\n".join(documents)


def run(*command: str, limit_s: float = LIMIT_S) -> str:
    """Output of a command, which must succeed."""
    environment = {**os.environ, "KUBECONFIG": "/etc/kubernetes/admin.conf"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=limit_s, env=environment
    )
    if done.returncode:
        report()
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout


def kubectl(*words: str) -> str:
    """kubectl on the cluster."""
    return run("kubectl", "--request-timeout=300s", *words)


def report() -> None:
    """What the node says when something did not happen."""
    for command in (
        "crictl ps -a",
        "journalctl -u kubelet --no-pager -o cat -n 40",
        "for c in $(crictl ps -aq); do echo == $c; crictl logs --tail 8 $c; done",
        "kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout=60s get pods -A -o wide",
        "kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout=60s get events -A",
    ):
        done = subprocess.run(
            ["bash", "-c", command + " 2>&1"], capture_output=True, text=True, check=False
        )
        print(f"--- {command}", done.stdout[-6000:], sep="\n", flush=True)


def until_holds(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait, or tell what the node says."""
    try:
        until(holds, what, limit_s)
    except AssertionError:
        report()
        raise


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A node that kubeadm has made; the times of its steps are printed."""
    start = time.monotonic()

    def took(what: str) -> None:
        print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

    run("criagent", "image", "import", str(TOOLS / "control-plane.tar"))
    took("images imported")
    Path("/etc/systemd/system/kubelet.service").write_text(KUBELET)
    Path("/root/kubeadm.yaml").write_text(documented())
    systemctl("daemon-reload")
    systemctl("enable", "kubelet")
    print(run("kubeadm", "config", "validate", "--config=/root/kubeadm.yaml"))
    words = ["kubeadm", "init", "--config=/root/kubeadm.yaml", "--skip-token-print"]
    # The machine has one processor, and its /boot, with the kernel's configuration, is empty.
    print(run(*words, "--ignore-preflight-errors=NumCPU,SystemVerification", limit_s=5000))
    took("kubeadm init")
    until_holds(node_is_ready, "a Ready node")
    took("the node is Ready")
    kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-")
    yield
    took("all")


def node_is_ready() -> bool:
    (node,) = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    ready = {one["type"]: one["status"] for one in node["status"]["conditions"]}
    return ready["Ready"] == "True"


def pods(*words: str) -> dict[str, bool]:
    """Names of pods, and whether each is Ready."""
    found = json.loads(kubectl("get", "pods", "-o", "json", *words))["items"]
    return {
        pod["metadata"]["name"]: any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in pod["status"].get("conditions", ())
        )
        for pod in found
    }


def test_every_pod_of_the_control_plane_runs() -> None:
    """Static pods, kube-proxy and CoreDNS, on the runtime that the node names."""
    runtime = "{.items[0].status.nodeInfo.containerRuntimeVersion}"
    assert kubectl("get", "nodes", "-o", f"jsonpath={runtime}").startswith("criagent://")

    def ready() -> bool:
        found = pods("-n", "kube-system")
        kinds = sorted(name.removesuffix("-criagent-vm").split("-")[0] for name in found)
        return kinds == ["coredns"] * 2 + ["etcd"] + ["kube"] * 4 and all(found.values())

    until_holds(ready, "readiness of the control plane's pods")
    print(kubectl("get", "pods", "-A", "-o", "wide"))


def test_a_pod_is_scheduled_and_reaches_a_service() -> None:
    """The pod has an address of the node's pod CIDR; kube-proxy and CoreDNS serve it."""
    kubectl("run", "one", f"--image={BUSYBOX}", "--", "sleep", "100000")
    until_holds(lambda: pods("-n", "default").get("one"), "the pod")
    pod = json.loads(kubectl("get", "pod", "one", "-o", "json"))
    assert pod["status"]["podIP"].startswith("10.244.0.")
    assert kubectl("exec", "one", "--", "echo", "hello") == "hello\n"
    # The API server's Service, by its address and by its name.
    kubectl("exec", "one", "--", "nc", "-w", "120", "10.96.0.1", "443")
    answer = kubectl("exec", "one", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert "10.96.0.1" in answer
    kubectl("delete", "pod", "one", "--grace-period=1")


def test_reset_leaves_nothing_of_the_pods() -> None:
    """No pod, scope, slice, mount or volume directory; the agent goes on."""
    print(run("kubeadm", "reset", "--force", f"--cri-socket={SOCKET}"))
    cri = Cri()
    assert [box.metadata.name for box in cri.pods()] == []
    assert cri.containers() == []
    cri.close()
    assert container_units() == []
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert [at for at in mounts if at.startswith(("/var/lib/kubelet", "/run/criagent/"))] == []
    assert list(Path("/var/lib/kubelet/pods").glob("*")) == []
    assert failed_units() == []
    events = Path("/sys/fs/cgroup/kubepods.slice/cgroup.events")
    assert not events.exists() or "populated 0" in events.read_text()
