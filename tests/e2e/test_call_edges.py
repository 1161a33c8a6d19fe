# SPDX-License-Identifier: Apache-2.0
"""Odd arguments of calls: filters, negative and huge numbers, objects in the wrong state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest

from tests.support.cri_client import Cri, api, container
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
WRONG = grpc.StatusCode.FAILED_PRECONDITION

GARBAGE = ("zz", "../..", "A" * 64, "0" * 65, "0" * 100_000, "%", "a\nb", "é", " ")  # no ids
Request = api.ListContainersRequest


def refused(call: Callable[[], object], code: grpc.StatusCode, *words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    for word in words:
        assert word in (caught.value.details() or "")


def everything_by(cri: Cri, **fields: object) -> list[int]:
    """How many items each list call finds whose filter knows all of these fields."""
    found = []
    for name, kind, items in (
        ("ListContainers", "Container", "containers"),
        ("ListPodSandbox", "PodSandbox", "items"),
        ("ListContainerStats", "ContainerStats", "stats"),
        ("ListPodSandboxStats", "PodSandboxStats", "stats"),
        ("StreamContainers", "Container", "containers"),
        ("StreamPodSandboxes", "PodSandbox", "pod_sandboxes"),
        ("StreamContainerStats", "ContainerStats", "container_stats"),
        ("StreamPodSandboxStats", "PodSandboxStats", "pod_sandbox_stats"),
    ):
        wanted = getattr(api, f"{kind}Filter")
        if set(fields) <= set(wanted.DESCRIPTOR.fields_by_name):
            answer = getattr(cri.runtime, name)(
                getattr(api, f"{name}Request")(filter=wanted(**fields))
            )
            pieces = list(answer) if name.startswith("Stream") else [answer]
            found.append(sum(len(getattr(piece, items)) for piece in pieces))
    return found


def test_images_come_in_pieces_as_in_a_list(cri: Cri) -> None:
    def ids(images: Iterable[api.Image]) -> list[str]:
        return sorted(image.id for image in images)

    whole = cri.image.ListImages(api.ListImagesRequest()).images
    pieces = list(cri.image.StreamImages(api.StreamImagesRequest()))
    assert ids(image for piece in pieces for image in piece.images) == ids(whole) != []
    wanted = api.ImageFilter(image=api.ImageSpec(image=whole[0].id))
    (piece,) = cri.image.StreamImages(api.StreamImagesRequest(filter=wanted))
    assert ids(piece.images) == [whole[0].id]
    none = api.ImageFilter(image=api.ImageSpec(image="nowhere.test/x"))
    answers = cri.image.StreamImages(api.StreamImagesRequest(filter=none))
    assert [image for answer in answers for image in answer.images] == []


def test_filters_of_garbage_find_nothing_and_break_nothing(pods: Pods) -> None:
    pods.running()
    for text in GARBAGE:
        assert everything_by(pods.cri, id=text) == [0] * 8
        assert everything_by(pods.cri, pod_sandbox_id=text) == [0] * 4
        assert everything_by(pods.cri, label_selector={text: ""}) == [0] * 8
        assert everything_by(pods.cri, label_selector={"": text}) == [0] * 8
    many = {f"label-{number}": "x" for number in range(10_000)}
    assert everything_by(pods.cri, label_selector=many) == [0] * 8
    for number in (3, 99, -1, 2**31 - 1):
        state = api.ContainerFilter(state=api.ContainerStateValue(state=number))  # type: ignore[arg-type]
        assert not pods.cri.runtime.ListContainers(Request(filter=state)).containers
        sandbox = api.PodSandboxFilter(state=api.PodSandboxStateValue(state=number))  # type: ignore[arg-type]
        assert not pods.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest(filter=sandbox)).items
    assert everything_by(pods.cri) == [1] * 8


def test_parts_of_a_filter_must_all_fit(pods: Pods) -> None:
    def labelled(config: api.ContainerConfig) -> None:
        config.labels.update({"app": "x", "tier": ""})

    sandbox = pods.sandbox()
    container_id = pods.running(pod=sandbox, change=labelled)
    other = pods.running(pod=sandbox)
    running = api.ContainerStateValue(state=api.CONTAINER_RUNNING)

    def ids(**fields: object) -> list[str]:
        wanted = api.ContainerFilter(**fields)  # type: ignore[arg-type]
        return [
            one.id for one in pods.cri.runtime.ListContainers(Request(filter=wanted)).containers
        ]

    assert ids(label_selector={"app": "x"}) == [container_id]
    assert ids(label_selector={"app": "x", "tier": ""}, pod_sandbox_id=sandbox[0][:20]) == [
        container_id
    ]
    assert ids(label_selector={"app": "y"}) == []
    assert ids(label_selector={"App": "x"}) == []
    assert ids(id=container_id[:12], state=running) == [container_id]
    assert ids(id=other, label_selector={"app": "x"}) == []
    pods.cri.stop(container_id)
    assert ids(state=running) == [other]
    assert ids(state=api.ContainerStateValue(state=api.CONTAINER_EXITED)) == [container_id]
    assert sorted(ids()) == sorted([container_id, other])


def image_count(cri: Cri, name: str) -> int:
    wanted = api.ImageFilter(image=api.ImageSpec(image=name))
    return len(cri.image.ListImages(api.ListImagesRequest(filter=wanted)).images)


def test_image_filters_of_garbage_find_nothing(cri: Cri) -> None:
    everything = len(cri.images())
    for text in ("no/such:image", "sha256:" + "0" * 64):
        assert image_count(cri, text) == 0
    for text in ("UPPER", "a b", "..", "x" * 100_000, "\n"):
        refused(lambda text=text: image_count(cri, text), INVALID, "reference")
    assert image_count(cri, "") == everything > 0


def exec_request(container_id: str) -> api.ExecRequest:
    return api.ExecRequest(container_id=container_id, cmd=["true"], stdout=True)


def attach_request(container_id: str) -> api.AttachRequest:
    return api.AttachRequest(container_id=container_id, stdout=True)


def test_calls_of_a_running_container_are_refused_before_and_after(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.cri.create(sandbox, container("idle", ["sleep", "100000"]), config)

    def all_refused(state: str) -> None:
        runtime = pods.cri.runtime
        refused(lambda: pods.cri.exec(container_id, "true"), WRONG, container_id, state)
        refused(lambda: runtime.Exec(exec_request(container_id)), WRONG, container_id, state)
        if state == "exited":  # before its start there is something to attach to
            refused(
                lambda: runtime.Attach(attach_request(container_id)), WRONG, container_id, state
            )
        reopen = api.ReopenContainerLogRequest(container_id=container_id)
        refused(lambda: runtime.ReopenContainerLog(reopen), WRONG, container_id, "not running")

    all_refused("created")
    pods.cri.start(container_id)
    pods.cri.stop(container_id)
    all_refused("exited")
    refused(lambda: pods.cri.start(container_id), WRONG, container_id, "exited")
    pods.cri.stop(container_id)
    pods.cri.stop_pod(sandbox)
    forward = api.PortForwardRequest(pod_sandbox_id=sandbox, port=[80])
    refused(lambda: pods.cri.runtime.PortForward(forward), WRONG, sandbox, "not ready")
    pods.cri.remove_pod(sandbox)
    for gone in (exec_request(container_id), attach_request(container_id)):
        call = getattr(pods.cri.runtime, type(gone).__name__.removesuffix("Request"))
        refused(lambda call=call, gone=gone: call(gone), NOT_FOUND, container_id)
    refused(lambda: pods.cri.runtime.PortForward(forward), NOT_FOUND, sandbox)


@pytest.mark.parametrize("port", [0, -1, 65536, 2**31 - 1])
def test_ports_out_of_range_are_refused(pods: Pods, port: int) -> None:
    sandbox, _ = pods.sandbox()
    request = api.PortForwardRequest(pod_sandbox_id=sandbox, port=[80, port])
    refused(lambda: pods.cri.runtime.PortForward(request), INVALID, str(port))


def test_times_below_zero(pods: Pods) -> None:
    container_id = pods.running()
    request = api.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=-1)
    refused(lambda: pods.cri.runtime.ExecSync(request), INVALID, "-1")
    stop = api.StopContainerRequest(container_id=container_id, timeout=-5)
    pods.cri.runtime.StopContainer(stop, timeout=60)
    assert pods.cri.status(container_id).state == api.CONTAINER_EXITED


def test_a_grace_period_of_centuries_can_be_cut_short(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    stop = api.StopContainerRequest(container_id=container_id, timeout=2**62)
    waiting = pods.cri.runtime.StopContainer.future(stop)
    pods.cri.exec(container_id, "true")
    pods.cri.stop(container_id, 0)
    waiting.result(timeout=10)
    assert pods.cri.status(container_id).exit_code == 137


def test_updates_of_nothing_and_of_too_much(pods: Pods) -> None:
    container_id = pods.running()
    runtime = pods.cri.runtime

    def update(**fields: object) -> None:
        linux = api.LinuxContainerResources(**fields)  # type: ignore[arg-type]
        request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=linux)
        runtime.UpdateContainerResources(request)

    before = pods.cri.status(container_id).resources
    runtime.UpdateContainerResources(api.UpdateContainerResourcesRequest(container_id=container_id))
    update()
    assert pods.cri.status(container_id).resources == before
    for fields in (
        {"cpu_period": -1},
        {"cpu_shares": -1},
        {"memory_limit_in_bytes": -2},
        {"oom_score_adj": 1001},
        {"cpuset_cpus": "0-"},
        {"unified": {"../cgroup.procs": "1"}},
    ):
        refused(lambda fields=fields: update(**fields), INVALID)
    assert pods.cri.status(container_id).resources == before
    assert pods.cri.exec(container_id, "true").exit_code == 0


def test_a_request_beyond_the_message_limit_is_refused(pods: Pods) -> None:
    config = pods.config()
    config.annotations["huge"] = "x" * (17 << 20)
    refused(lambda: pods.cri.run(config), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")
    assert pods.cri.pods() == []


def test_unknown_methods_and_broken_messages(cri: Cri) -> None:
    service = "/runtime.v1.RuntimeService"
    call: Any = cri.channel.unary_unary(f"{service}/NoSuchCall")
    refused(lambda: call(b""), UNSUPPORTED)
    call = cri.channel.unary_unary(f"{service}/RunPodSandbox")
    stream: Any = cri.channel.unary_stream(f"{service}/StreamContainers")
    refused(lambda: call(b"\xff\xff\xff"), INVALID, "malformed request")
    refused(lambda: list(stream(b"\xff\xff\xff")), INVALID, "malformed request")
    old: Any = cri.channel.unary_unary("/runtime.v1alpha2.RuntimeService/Version")
    refused(lambda: old(b""), UNSUPPORTED)
    assert cri.pods() == []


def test_ids_may_be_short_but_not_ambiguous(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_ids = {
        pods.cri.create(sandbox, container(f"n{n}", ["true"]), config) for n in range(17)
    }
    first = next(a for a in container_ids for b in container_ids if a != b and a[0] == b[0])
    refused(lambda: pods.cri.status(first[0]), INVALID, "ambiguous")
    assert pods.cri.status(first[:20]).id == first
    assert pods.cri.pod_status(sandbox[:12]).id == sandbox
    pods.cri.start(first[:20])
    until(lambda: pods.cri.status(first).state == api.CONTAINER_EXITED, "the exit")
