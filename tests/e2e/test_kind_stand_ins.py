# SPDX-License-Identifier: Apache-2.0
"""deploy/kind/bin on a running agent: called with the words of kind v0.33, input and all."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.pods import Pods

pytestmark = pytest.mark.root

# Two images that no other test has pulled: both are removed in the end.
REGISTRY = "docker://127.0.0.1:5000/"
SOURCE, OTHER = (f"{REGISTRY}k8s-staging-cri-tools/test-image-{n}:latest" for n in (2, 3))
NAME = "docker.io/library/mine:1"
IMPORT = [
    *("ctr", "--namespace=k8s.io", "images", "import"),
    *("--all-platforms", "--digests", "--snapshotter=overlayfs", "-"),
]
TAG = ["ctr", "--namespace=k8s.io", "images", "tag", "--force"]

Call = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def node(cri: Cri, tmp_path: Path) -> Iterator[Call]:
    """Run a command with the stand-ins in front of the path, as on a node of kind."""
    program = tmp_path / "bin" / "criagent"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nexec python3 -m criagent "$@"\n')
    program.chmod(0o755)
    path = f"/src/deploy/kind/bin:{program.parent}:/opt/tools:/opt/venv/bin:/usr/sbin:/usr/bin:/bin"

    def call(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["env", f"PATH={path}", *command], input=stdin, capture_output=True, check=False
        )

    before = {image.id for image in cri.images()}
    yield call
    client = Cri()
    for sandbox in client.pods():
        client.remove_pod(sandbox.id)
    for image in client.images():
        if image.id not in before:
            client.remove_image(image.id)
    client.close()


def archive(kind: str, to: Path, source: str = SOURCE, name: str = "mine:1") -> bytes:
    """An archive of an image under a name of its own, as `docker save` and podman write them."""
    name = name if kind == "docker-archive" else f"docker.io/library/{name}"
    command = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy"]
    subprocess.run([*command, source, f"{kind}:{to}:{name}"], check=True)
    return to.read_bytes()


def inspected(node: Call, name: str) -> dict[str, object]:
    done = node("crictl", "inspecti", name)
    assert done.returncode == 0, done.stderr
    status: dict[str, object] = json.loads(done.stdout)["status"]
    return status


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_load_an_image_and_run_it(kind: str, node: Call, pods: Pods, tmp_path: Path) -> None:
    """`kind load image-archive`: the snapshotter, the import; then what a pod does with it."""
    dump = node("containerd", "config", "dump")
    config = tomllib.loads(dump.stdout.decode())
    assert config["version"] in {3, 4}
    assert config["plugins"]["io.containerd.cri.v1.images"]["snapshotter"] == "overlayfs"

    done = node(*IMPORT, stdin=archive(kind, tmp_path / "image.tar"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert NAME in done.stdout.decode()
    status = inspected(node, "mine:1")
    assert NAME in status["repoTags"]  # type: ignore[operator]
    container_id = pods.running(
        "sleep", "1000", change=lambda c: c.image.CopyFrom(api.ImageSpec(image=NAME))
    )
    assert pods.cri.exec(container_id, "echo", "hello").stdout == b"hello\n"
    assert pods.cri.status(container_id).image_id == status["id"]


def test_load_a_docker_image_that_is_there_under_another_tag(node: Call, tmp_path: Path) -> None:
    """`kind load docker-image` tags by image id instead of sending the image again."""
    assert node(*IMPORT, stdin=archive("docker-archive", tmp_path / "a.tar")).returncode == 0
    image_id = str(inspected(node, NAME)["id"])
    assert node(*TAG, image_id, "docker.io/library/retagged:2").returncode == 0
    assert node(*TAG, image_id, "docker.io/library/retagged:2").returncode == 0
    tags = inspected(node, image_id)["repoTags"]
    assert {NAME, "docker.io/library/retagged:2"} <= set(tags)  # type: ignore[call-overload]
    listed = node("ctr", "--namespace=k8s.io", "images", "list", "-q").stdout.decode().split()
    assert {NAME, "docker.io/library/retagged:2"} <= set(listed)


def test_a_tag_moves_and_stays_over_a_restart(node: Call, tmp_path: Path) -> None:
    for name, source in {"mine:1": SOURCE, "retagged:2": OTHER}.items():
        content = archive("docker-archive", tmp_path / f"{name[:4]}.tar", source, name)
        assert node(*IMPORT, stdin=content).returncode == 0
    old, other = (str(inspected(node, name)["id"]) for name in (NAME, "retagged:2"))
    assert node(*TAG, "retagged:2", NAME).returncode == 0
    assert inspected(node, NAME)["id"] == other
    agent.kill()
    agent.start().close()
    assert inspected(node, NAME)["id"] == other
    assert inspected(node, old)["repoTags"] == []


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ([*TAG, "none:1", "x:1"], "not on this node"),
        ([*TAG, "registry.k8s.io/fixtures/debian:13", "UPPER:1"], "invalid image reference"),
        ([*TAG, "registry.k8s.io/fixtures/debian:13", "x@sha256:" + "0" * 64], "has a digest"),
        ([*TAG, "only-one"], "an image and one tag"),
        (IMPORT, "not an image archive"),
        (["ctr", "images", "import", "-"], "namespace default does not exist"),
        (["ctr", "-n", "k8s.io", "containers", "ls"], "containers is not supported"),
        (["ctr", "-n", "k8s.io", "images", "import", "--index-name=x", "-"], "--index-name=x"),
        (["ctr", "-n", "k8s.io", "run", "x"], "use crictl"),
        (["ctr"], "namespace"),
        (["containerd"], "this node runs criagent"),
    ],
)
def test_what_cannot_be_done_is_refused(command: list[str], part: str, node: Call) -> None:
    done = node(*command, stdin=b"no archive")
    assert done.returncode == 1
    assert part in done.stderr.decode()
