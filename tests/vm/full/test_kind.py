# SPDX-License-Identifier: Apache-2.0
# vm: memory=6144 limit=7200 programs=kind,kubectl,node-image.tar seconds=1500
"""kind with podman: a cluster of deploy/kind's node image, images loaded into it, its end.

The image is made by deploy/kind/build-from-root (tests/nodes/kind). `podman run` returns when the
node has booted, because this machine needs longer for that than kind's half a minute.
"""

from __future__ import annotations

import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubeadm_node import PATCHES, SLOW, Cluster, write_patches
from tests.support.units import systemctl

pytestmark = pytest.mark.timeout(5400)

IMAGE = "localhost/criagent-node:v1.36.3"
NODE = "kind-control-plane"
REGISTRY = "127.0.0.1:5000"
METADATA = (
    'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]',
    "ENV container=docker",
    "STOPSIGNAL SIGRTMIN+3",
)
PODMAN = f"""#!/bin/bash
[ "$1" = run ] || exec /usr/bin/podman "$@"
/usr/bin/podman "$@" || exit
for _ in $(seq 600); do
    ! /usr/bin/podman exec {NODE} systemctl -q is-active multi-user.target || exit 0
    sleep 1
done
exit 1
"""


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Not between these tests: the last one looks."""


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    """The cluster's own."""


# kubeadm's calls for the add-ons have ten seconds: they follow when the start's load is over.
LATER = """skipPhases: [preflight, addon/coredns, addon/kube-proxy]
"""


def configuration() -> str:
    """deploy/kind/cluster.yaml, which ends with its patches, on a slow machine."""
    own = (
        '  - {name: enable-hostpath-provisioner, value: "true"}\n'  # kind's; a patch replaces lists
    )
    patches = {
        "InitConfiguration": LATER + SLOW["InitConfiguration"],
        "ClusterConfiguration": SLOW["ClusterConfiguration"].replace("  - ", f"{own}  - ", 1),
        "KubeletConfiguration": SLOW["KubeletConfiguration"],
    }
    text = Path("/src/deploy/kind/cluster.yaml").read_text()
    mount = f"    extraMounts: [{{hostPath: {PATCHES}, containerPath: {PATCHES}}}]\n"
    node = "  - role: control-plane\n"
    assert node in text
    text = text.replace(node, node + mount)
    for kind, more in patches.items():
        text += "  - |\n" + textwrap.indent(f"kind: {kind}\n{more}", "    ")
    return text


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`kind create cluster`; the times of its steps are printed."""
    start = time.monotonic()

    def took(what: str) -> None:
        print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

    systemctl("stop", "criagent")  # this machine's own; the node has one
    made = Cluster("/root/.kube/config", ["podman", "exec", NODE])
    programs = Path("/root/bin")
    programs.mkdir()
    (programs / "podman").write_text(PODMAN)
    (programs / "podman").chmod(0o755)
    (programs / "docker").symlink_to("/usr/bin/podman")  # kind load docker-image knows no other
    made.environment["PATH"] = f"{programs}:{made.environment['PATH']}"
    made.environment["KIND_EXPERIMENTAL_PROVIDER"] = "podman"
    changes = [f"--change={one}" for one in METADATA]
    made.run("podman", "import", "-q", *changes, "/opt/tools/bin/node-image.tar", IMAGE)
    took("the node image is imported")
    write_patches()
    Path("/root/cluster.yaml").write_text(configuration())
    words = ["kind", "create", "cluster", "--image", IMAGE, "--config", "/root/cluster.yaml"]
    print(made.run(*words, "--wait=30m", "--retain", limit_s=5000))
    took("kind create cluster")
    made.apply_addons("/kind/kubeadm.conf")
    took("the add-ons are applied")
    yield made
    took("all")


def test_the_cluster_comes_up(cluster: Cluster) -> None:
    runtime = "{.items[0].status.nodeInfo.containerRuntimeVersion}"
    assert cluster.kubectl("get", "nodes", "-o", f"jsonpath={runtime}").startswith("criagent://")
    assert cluster.is_ready()
    cluster.until(cluster.control_plane_is_ready, "readiness of the control plane's pods")
    print(cluster.kubectl("get", "pods", "-A", "-o", "wide"))


def test_pods_run_from_loaded_images(cluster: Cluster) -> None:
    """An archive, an image of podman's, and that again under another tag."""
    busybox = f"docker://{REGISTRY}/e2e-test-images/busybox:1.29-2"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy", busybox]
    subprocess.run([*copy, "docker-archive:/root/mine.tar:docker.io/library/mine:1"], check=True)
    print(cluster.run("kind", "load", "image-archive", "/root/mine.tar"))
    other = f"{REGISTRY}/k8s-staging-cri-tools/test-image-2:latest"
    cluster.run("podman", "pull", "-q", "--tls-verify=false", other)
    for name in ("localhost/own:1", "localhost/own:2"):
        cluster.run("podman", "tag", other, name)
        print(cluster.run("kind", "load", "docker-image", name))
    for pod, image in {"one": "mine:1", "two": "localhost/own:2"}.items():
        words = ["run", pod, f"--image={image}", "--image-pull-policy=Never"]
        cluster.kubectl(*words, "--", "sleep", "100000")
    cluster.until(lambda: sum(cluster.pods("default").values()) == 2, "the pods")
    for pod in ("one", "two"):
        assert cluster.kubectl("exec", pod, "--", "echo", "hello") == "hello\n"


def test_the_cluster_goes(cluster: Cluster) -> None:
    print(cluster.run("kind", "delete", "cluster"))
    assert cluster.run("podman", "ps", "-aq") == ""
    assert cluster.run("podman", "volume", "ls", "-q") == ""
    names = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm")]
    assert "kubelet" not in names
    assert "conmon" not in names
