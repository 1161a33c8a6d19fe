# SPDX-License-Identifier: Apache-2.0
"""OCI artifacts as image volumes: a model, a configuration, directories; and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.artifacts import EMPTY, TAR, ArtifactRegistry, artifact_registry, layer
from tests.support.cri_client import Cri, api, container
from tests.support.image_archives import command
from tests.support.image_builder import digest
from tests.support.images import usage
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LOST = grpc.StatusCode.DATA_LOSS
MODEL = "application/vnd.example.model"
WEIGHTS = os.urandom(3 << 20)  # more than a piece that is read at once


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(autouse=True)
def no_artifact_stays(cri: Cri) -> Iterator[None]:
    yield
    fresh = Cri()
    for one in fresh.containers():
        fresh.remove(one.id)
    for image in fresh.images():
        if any(name.startswith("127.0.0.1:") for name in image.repo_digests):
            fresh.remove_image(image.id)
    fresh.close()


def model(registry: ArtifactRegistry, tag: str = "") -> str:
    """As `oras push` and a model's tool make it: files of any media type, some in directories."""
    return registry.push(
        [
            layer(WEIGHTS, "weights/model.bin", "application/vnd.example.weights"),
            layer(b'{"a": 1}\n', "config.json", "application/json"),
            layer(b"hidden\n", "weights/.index"),
            layer(b"", "weights/empty"),
            layer(b"unseen\n"),
        ],
        tag=tag,
        artifactType=MODEL,
    )


def volume(image: str, sub_path: str = "") -> Callable[[api.ContainerConfig], None]:
    def change(config: api.ContainerConfig) -> None:
        mount = config.mounts.add(container_path="/volume", readonly=True, image_sub_path=sub_path)
        mount.image.image = image

    return change


def output(cri: Cri, container_id: str, script: str) -> str:
    done = cri.exec(container_id, "sh", "-c", script)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.decode())


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_each_layer_is_a_file_under_its_title(
    handler: str, registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    image = cri.pull(model(registry))
    config = pods.config()
    pod = cri.run(config, handler=handler), config
    container_id = pods.running(pod=pod, change=volume(image))
    assert output(cri, container_id, "cd /volume; find . -type f | sort") == (
        "./config.json\n./weights/.index\n./weights/empty\n./weights/model.bin\n"
    )
    found = output(cri, container_id, "sha256sum < /volume/weights/model.bin")
    assert digest(WEIGHTS) == f"sha256:{found.split()[0]}"
    assert output(cri, container_id, "cat /volume/config.json") == '{"a": 1}\n'
    assert output(cri, container_id, "stat -c %a:%u:%g /volume/config.json") == "644:0:0\n"
    for change in ("touch /volume/x", "rm /volume/config.json", "echo x >> /volume/config.json"):
        assert b"Read-only" in cri.exec(container_id, "sh", "-c", change).stderr
    below = pods.running(change=volume(image, "weights"))
    assert output(cri, below, "ls -A /volume") == ".index\nempty\nmodel.bin\n"
    sandbox, pod_config = pods.sandbox()
    of_file = container("file", ["sleep", "1"])
    volume(image, "config.json")(of_file)
    refused(lambda: cri.create(sandbox, of_file, pod_config), INVALID, "not a directory")


def test_a_directory_of_oras_is_unpacked(registry: ArtifactRegistry, cri: Cri, pods: Pods) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in (("folder/a", b"a\n"), ("folder/sub/b", b"b\n")):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o640
            tar.addfile(member, io.BytesIO(content))
    notes = {
        "io.deis.oras.content.digest": digest(plain.getvalue()),
        "io.deis.oras.content.unpack": "true",
    }
    ref = registry.push(
        [
            layer(b"file\n", "folder/file"),
            layer(gzip.compress(plain.getvalue()), "folder", TAR + "+gzip", **notes),
        ],
        artifactType=MODEL,
    )
    container_id = pods.running(change=volume(cri.pull(ref)))
    assert output(cri, container_id, "cd /volume/folder; cat a sub/b file") == "a\nb\nfile\n"


def test_artifacts_of_one_configuration_are_images_of_their_own(
    registry: ArtifactRegistry, cri: Cri
) -> None:
    before, size = {image.id for image in cri.images()}, usage(cri)
    one = registry.push([layer(b"one", "a")], tag="one", artifactType=MODEL)
    two = registry.push([layer(b"two", "a")], tag="two", artifactType=MODEL)
    ids = {cri.pull(one), cri.pull(f"{registry.host}/artifacts:two")}
    assert ids == {one.partition("@")[2], two.partition("@")[2]}
    assert {image.id for image in cri.images()} - before == ids
    spec = api.ImageSpec(image=f"{registry.host}/artifacts:two")
    status = cri.image.ImageStatus(api.ImageStatusRequest(image=spec, verbose=True))
    assert list(status.image.repo_tags) == [spec.image]
    assert list(status.image.repo_digests) == [two]
    assert status.image.size == len(b"{}") + len(b"two")
    assert MODEL in status.info["info"]
    assert usage(cri) > size
    assert command("fsck").returncode == 0
    for image_id in ids:
        cri.remove_image(image_id)
    assert usage(cri) == size


def test_a_container_keeps_an_artifact_and_a_restart_changes_nothing(
    registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    image = cri.pull(model(registry))
    container_id = pods.running(change=volume(image))
    cri.remove_image(image)
    assert image not in {one.id for one in cri.images()}
    agent.stop()
    fresh = agent.start()
    assert output(fresh, container_id, "cat /volume/config.json") == '{"a": 1}\n'
    found = output(fresh, container_id, "sha256sum < /volume/weights/model.bin")
    assert digest(WEIGHTS) == f"sha256:{found.split()[0]}"
    again = fresh.pull(model(registry))
    assert again == image
    fresh.close()


def test_it_is_neither_run_nor_exported(registry: ArtifactRegistry, cri: Cri, pods: Pods) -> None:
    ref = model(registry)
    image = cri.pull(ref)
    sandbox, config = pods.sandbox()
    wanted = container("c", ["sleep", "1"], image=image)
    refused(
        lambda: cri.create(sandbox, wanted, config),
        INVALID,
        f"is an OCI artifact ({MODEL}), not a container image; mount it as an image volume",
    )
    done = command("export", "-", ref)
    assert done.returncode != 0
    assert b"only images can be exported" in done.stderr


@pytest.mark.parametrize(
    ("titles", "why"),
    [
        (["../../../../etc/criagent/owned"], "leads through"),
        (["/etc/owned"], "absolute"),
        (["a", "a"], "two layers"),
        (["a", "a/b"], "directory of another title"),
        (["a/.wh.b"], "hide files"),
    ],
)
def test_a_hostile_title_is_refused_and_writes_nothing(
    titles: list[str], why: str, registry: ArtifactRegistry, cri: Cri
) -> None:
    described = [layer(b"%d" % number, title) for number, title in enumerate(titles)]
    ref = registry.push(described, artifactType=MODEL)
    refused(lambda: cri.pull(ref), LOST, why)
    assert not Path("/etc/owned").exists()
    assert not Path("/etc/criagent/owned").exists()


def test_an_artifact_without_files_is_refused(registry: ArtifactRegistry, cri: Cri) -> None:
    ref = registry.push([layer(b"signature", kind=EMPTY)], artifactType=MODEL)
    refused(lambda: cri.pull(ref), grpc.StatusCode.UNIMPLEMENTED, "without files")
