# SPDX-License-Identifier: Apache-2.0
"""What a status says of image, user and stop signal; image calls on behalf of handlers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container
from tests.support.images import listed
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.waiting import until

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
GROUPS = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"
NGINX = "registry.k8s.io/e2e-test-images/nginx:1.14-2"


@pytest.mark.parametrize(
    ("policy", "groups"),
    [
        (api.SupplementalGroupsPolicy.Merge, [1000, 1234, 50000]),
        (api.SupplementalGroupsPolicy.Strict, [1000, 1234]),
    ],
)
def test_groups_are_those_of_the_policy_everywhere(
    pods: Pods, policy: int, groups: list[int]
) -> None:
    pods.cri.pull(GROUPS)
    sandbox = pods.sandbox()

    def asks(config: api.ContainerConfig) -> None:
        config.image.image = GROUPS
        config.linux.security_context.supplemental_groups.append(1234)
        config.linux.security_context.supplemental_groups_policy = policy  # type: ignore[assignment]

    assert pods.cri.runtime.Status(api.StatusRequest()).features.supplemental_groups_policy
    container_id = pods.running(
        "sh", "-c", "id -u; id -g; id -G; sleep 1000", pod=sandbox, change=asks
    )
    user = pods.cri.status(container_id).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (1000, 1000, groups)
    until(lambda: len(pods.log(container_id).splitlines()) == 3, "three lines")
    main = pods.log(container_id).splitlines()
    assert main[:2] == ["1000", "1000"]
    assert sorted(int(group) for group in main[2].split()) == groups
    found = pods.cri.exec(container_id, "id", "-G").stdout.split()
    assert sorted(int(group) for group in found) == groups
    pods.cri.remove_pod(sandbox[0])
    pods.cri.remove_image(GROUPS)


@pytest.mark.parametrize(
    ("image", "asked", "told", "heard"),
    [
        (BUSYBOX, api.SIGNAL_RUNTIME_DEFAULT, api.SIGNAL_SIGTERM, "TERM"),
        (BUSYBOX, api.SIGNAL_SIGUSR1, api.SIGNAL_SIGUSR1, "USR1"),
        (NGINX, api.SIGNAL_RUNTIME_DEFAULT, api.SIGNAL_SIGQUIT, "QUIT"),
        (NGINX, api.SIGNAL_SIGRTMINPLUS3, api.SIGNAL_SIGRTMINPLUS3, "37"),
    ],
)
def test_the_stop_signal_in_force_is_told_and_sent(
    pods: Pods, image: str, asked: int, told: int, heard: str
) -> None:
    had = image in listed(pods.cri)
    pods.cri.pull(image)
    traps = 'for s in TERM USR1 QUIT 37; do trap "echo $s; exit 0" $s; done'

    def asks(config: api.ContainerConfig) -> None:
        config.image.image = image
        config.stop_signal = asked  # type: ignore[assignment]

    sandbox = pods.sandbox()
    script = f"{traps}; echo ready; while :; do sleep 0.05; done"
    container_id = pods.running("sh", "-c", script, pod=sandbox, change=asks)
    assert pods.cri.status(container_id).stop_signal == told
    until(lambda: "ready" in pods.log(container_id), "the traps")
    pods.cri.stop(container_id, 20)
    assert pods.log(container_id).split() == ["ready", heard]
    pods.cri.remove_pod(sandbox[0])
    if not had:
        pods.cri.remove_image(image)


def test_the_image_is_told_by_the_name_that_its_user_knows(pods: Pods) -> None:
    image = listed(pods.cri)[DEBIAN]
    digest = image.repo_digests[0]

    def asks(user_specified: str) -> Callable[[api.ContainerConfig], None]:
        def change(config: api.ContainerConfig) -> None:
            config.image.image = image.id
            config.image.user_specified_image = user_specified
            config.image.annotations["example.com/team"] = "blue"
            config.image.runtime_handler = "runc"

        return change

    sandbox = pods.sandbox()
    for asked, name in {
        DEBIAN: DEBIAN,
        "": DEBIAN,
        digest: digest,
        f"{DEBIAN}@{digest.partition('@')[2]}": digest,
        "registry.test/other:1": DEBIAN,
    }.items():
        container_id = pods.running(pod=sandbox, change=asks(asked))
        status = pods.cri.status(container_id)
        assert status.image.image == name
        assert status.image.user_specified_image == asked
        assert dict(status.image.annotations) == {"example.com/team": "blue"}
        assert status.image.runtime_handler == "runc"
        assert (status.image_id, status.image_ref) == (image.id, digest)
        (found,) = [c for c in pods.cri.containers() if c.id == container_id]
        assert (found.image.image, found.image_id) == (image.id, image.id)


def test_images_of_unknown_handlers_are_refused(pods: Pods) -> None:
    cri = pods.cri
    bad, good = (api.ImageSpec(image=BUSYBOX, runtime_handler=n) for n in ("kata", "runc"))
    words = "handlers: crun, runc"
    refused(lambda: cri.image.PullImage(api.PullImageRequest(image=bad)), INVALID, words)
    refused(lambda: cri.image.ImageStatus(api.ImageStatusRequest(image=bad)), INVALID, words)
    refused(lambda: cri.image.RemoveImage(api.RemoveImageRequest(image=bad)), INVALID, words)
    found = api.ListImagesRequest(filter=api.ImageFilter(image=bad))
    refused(lambda: cri.image.ListImages(found), INVALID, words)
    sandbox, config = pods.sandbox()
    wanted = container("c", ["sleep", "1"])
    wanted.image.CopyFrom(bad)
    refused(lambda: cri.create(sandbox, wanted, config), INVALID, words)
    wanted.image.CopyFrom(good)
    wanted.mounts.add(container_path="/v", readonly=True).image.CopyFrom(bad)
    refused(lambda: cri.create(sandbox, wanted, config), INVALID, words)
    assert cri.image.ImageStatus(api.ImageStatusRequest(image=good)).image.id
    found = api.ListImagesRequest(filter=api.ImageFilter(image=good))
    assert len(cri.image.ListImages(found).images) == 1


def test_a_verbose_image_status_has_the_configuration_of_the_registry(cri: Cri) -> None:
    request = api.ImageStatusRequest(image=api.ImageSpec(image=DEBIAN), verbose=True)
    answer = cri.image.ImageStatus(request)
    info = json.loads(answer.info["info"])
    assert info["imageSpec"]["config"]["WorkingDir"] == "/srv"
    assert len(info["imageSpec"]["rootfs"]["diff_ids"]) == len(info["layers"]) == 3
    assert info["imageSpec"]["history"]
    blob = Path("/var/lib/criagent/blobs", *answer.image.id.split(":"))
    assert info["imageSpec"] == json.loads(blob.read_bytes())
    plain = cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=DEBIAN)))
    assert not plain.info
    assert plain.image == answer.image
