# SPDX-License-Identifier: Apache-2.0
"""A handler whose images are of another platform than the node's, beside the default one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.artifacts import ArtifactRegistry, artifact_registry
from tests.support.cri_client import Cri, api, container
from tests.support.image_builder import Layer, image, push
from tests.support.pods import Pods

pytestmark = pytest.mark.root

OTHER = "arm64"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    """An image for two platforms, whose programs are this node's all the same: nothing here can run
    those of another.
    """
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        both = []
        for arch in ("amd64", OTHER):
            layer = Layer()
            layer.file("bin/busybox", Path("/usr/bin/busybox").read_bytes())
            layer.symlink("bin/cat", "busybox")
            layer.symlink("bin/sleep", "busybox")
            layer.file("arch", arch.encode(), 0o644)
            both.append((image([layer.tar()], {}, arch=arch), arch))
        push(one.host, both, "both:1")
        yield one


@pytest.fixture
def emulated(pods: Pods, registry: ArtifactRegistry) -> Iterator[Pods]:
    """Pods of an agent whose handler runc takes images of the other platform."""
    agent.stop()
    pods.cri = agent.start(f'[runtime.handlers.runc]\nplatform = "linux/{OTHER}"\n')
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    for found in pods.cri.images():
        if any(tag.startswith(registry.host) for tag in found.repo_tags):
            pods.cri.remove_image(found.id)
    agent.stop()
    pods.cri = agent.start()


def pulled(cri: Cri, name: str, handler: str) -> str:
    spec = api.ImageSpec(image=name, runtime_handler=handler)
    return str(cri.image.PullImage(api.PullImageRequest(image=spec), timeout=60).image_ref)


def status(cri: Cri, name: str, handler: str) -> str:
    """The id of the image that the name means for a handler, "" = none."""
    spec = api.ImageSpec(image=name, runtime_handler=handler)
    return str(cri.image.ImageStatus(api.ImageStatusRequest(image=spec)).image.id)


def architecture(pods: Pods, name: str, handler: str) -> bytes:
    """What a container of the handler finds in its root."""
    config = pods.config()
    sandbox = pods.cri.run(config, handler=handler)
    wanted = container("c", ["/bin/sleep", "100000"])
    wanted.image.image, wanted.image.runtime_handler = name, handler
    container_id = pods.cri.create(sandbox, wanted, config)
    pods.cri.start(container_id)
    return bytes(pods.cri.exec(container_id, "/bin/cat", "/arch").stdout)


def test_one_tag_is_an_image_for_each_platform(emulated: Pods, registry: ArtifactRegistry) -> None:
    name = f"{registry.host}/both:1"
    own = pulled(emulated.cri, name, "")
    assert status(emulated.cri, name, "runc") == ""
    other = pulled(emulated.cri, name, "runc")
    assert own != other
    for _ in range(2):  # the second time after a restart
        assert status(emulated.cri, name, "") == own
        assert status(emulated.cri, name, "crun") == own
        assert status(emulated.cri, name, "runc") == other
        agent.stop()
        emulated.cri = agent.start(f'[runtime.handlers.runc]\nplatform = "linux/{OTHER}"\n')
    assert architecture(emulated, name, "") == b"amd64"
    assert architecture(emulated, name, "runc") == OTHER.encode()


def test_removing_the_name_for_a_handler_leaves_the_other(
    emulated: Pods, registry: ArtifactRegistry
) -> None:
    name = f"{registry.host}/both:1"
    own = pulled(emulated.cri, name, "")
    pulled(emulated.cri, name, "runc")
    spec = api.ImageSpec(image=name, runtime_handler="runc")
    emulated.cri.image.RemoveImage(api.RemoveImageRequest(image=spec))
    assert status(emulated.cri, name, "runc") == ""
    assert status(emulated.cri, name, "") == own


def test_a_platform_that_an_image_lacks_is_named(pods: Pods, registry: ArtifactRegistry) -> None:
    agent.stop()
    pods.cri = agent.start('[runtime.handlers.runc]\nplatform = "linux/s390x"\n')
    with pytest.raises(grpc.RpcError, match="linux/s390x"):
        pulled(pods.cri, f"{registry.host}/both:1", "runc")
    agent.stop()
    pods.cri = agent.start()
