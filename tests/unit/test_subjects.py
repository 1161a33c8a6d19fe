# SPDX-License-Identifier: Apache-2.0
"""What log lines and spans name for a request: pod, container, image, as far as it has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from criagent._proto import admin_pb2
from criagent._proto import api_pb2 as api
from criagent.cri.subjects import Subjects
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

SANDBOX, CONTAINER = "5" * 64, "c" * 64
POD = {"pod": "ns/web", "pod_uid": "u1"}
IN_SANDBOX = {**POD, "sandbox_id": SANDBOX}
IN_CONTAINER = {
    **IN_SANDBOX,
    "container": "main",
    "container_id": CONTAINER,
    "image": "docker.io/library/web:1",
}
METADATA = api.PodSandboxMetadata(name="web", namespace="ns", uid="u1")
CONFIG = api.PodSandboxConfig(metadata=METADATA)


@pytest_asyncio.fixture
async def subjects(tmp_path: Path) -> AsyncIterator[Subjects]:
    """One pod with one container."""
    db = Database.open(tmp_path / "state.db")
    sandboxes, containers = SandboxStore(db), ContainerStore(db)
    metadata = SandboxMetadata(name="web", namespace="ns", uid="u1")
    await sandboxes.insert(
        Sandbox(
            id=SandboxId(SANDBOX),
            spec=SandboxSpec(metadata=metadata),
            created_at_ns=1,
            boot_id="b",
        )
    )
    await containers.insert(
        Container(
            id=ContainerId(CONTAINER),
            sandbox_id=SandboxId(SANDBOX),
            spec=ContainerSpec(
                metadata=ContainerMetadata(name="main"),
                image="sha256:1",
                user_specified_image="docker.io/library/web:1",
            ),
            created_at_ns=2,
            boot_id="b",
            handler="crun",
        )
    )
    yield Subjects(sandboxes, containers)
    db.close()


CASES: list[tuple[Any, dict[str, str]]] = [
    (api.RunPodSandboxRequest(config=CONFIG), POD),
    (api.RunPodSandboxRequest(), {}),
    (
        api.CreateContainerRequest(
            pod_sandbox_id=SANDBOX,
            sandbox_config=CONFIG,
            config=api.ContainerConfig(
                metadata=api.ContainerMetadata(name="side"),
                image=api.ImageSpec(image="sha256:2", user_specified_image="side:2"),
            ),
        ),
        {**IN_SANDBOX, "container": "side", "image": "side:2"},
    ),
    (
        api.CreateContainerRequest(
            pod_sandbox_id="unknown",
            config=api.ContainerConfig(image=api.ImageSpec(image="side:2")),
        ),
        {"sandbox_id": "unknown", "container": "", "image": "side:2"},
    ),
    (
        api.PullImageRequest(image=api.ImageSpec(image="side:2"), sandbox_config=CONFIG),
        {**POD, "image": "side:2"},
    ),
    (api.PullImageRequest(image=api.ImageSpec(image="side:2")), {"image": "side:2"}),
    (api.RemoveImageRequest(image=api.ImageSpec(image="side:2")), {"image": "side:2"}),
    (api.ImageStatusRequest(image=api.ImageSpec(image="side:2")), {"image": "side:2"}),
    (admin_pb2.TagImageRequest(image="a", tag="b"), {"image": "a"}),
    (api.StopContainerRequest(container_id="nothing"), {"container_id": "nothing"}),
    (api.StopPodSandboxRequest(pod_sandbox_id="nothing"), {"sandbox_id": "nothing"}),
    (api.ListContainersRequest(), {}),
    (api.StatusRequest(), {}),
    (admin_pb2.InfoRequest(), {}),
]


@pytest.mark.parametrize(("request_", "facts"), CASES)
async def test_a_request_names_its_subject(
    subjects: Subjects, request_: Any, facts: dict[str, str]
) -> None:
    assert subjects.of(request_) == facts


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for name in api.DESCRIPTOR.message_types_by_name
        if name.endswith("Request")
        and "container_id" in (kind := getattr(api, name)).DESCRIPTOR.fields_by_name
    ],
)
@pytest.mark.parametrize("given", [CONTAINER, CONTAINER[:12]])
async def test_every_request_about_a_container_names_it_by_id_or_prefix(
    subjects: Subjects, kind: Any, given: str
) -> None:
    assert subjects.of(kind(container_id=given)) == IN_CONTAINER


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for name in api.DESCRIPTOR.message_types_by_name
        if name.endswith("Request")
        and "pod_sandbox_id" in (kind := getattr(api, name)).DESCRIPTOR.fields_by_name
        and name != "CreateContainerRequest"
    ],
)
async def test_every_request_about_a_sandbox_names_it(subjects: Subjects, kind: Any) -> None:
    assert subjects.of(kind(pod_sandbox_id=SANDBOX)) == IN_SANDBOX


def test_a_container_names_its_pod_by_the_labels_of_the_kubelet() -> None:
    labels = {
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "ns",
        "io.kubernetes.pod.uid": "u1",
    }
    container = Container(
        id=ContainerId(CONTAINER),
        sandbox_id=SandboxId(SANDBOX),
        spec=ContainerSpec(metadata=ContainerMetadata(name="main"), image="i", labels=labels),
        created_at_ns=2,
        boot_id="b",
        handler="crun",
    )
    assert container.facts == {**IN_CONTAINER, "image": "i"}
