# SPDX-License-Identifier: Apache-2.0
"""Each verb of the CRI as one call that may fail and is then made again, as a kubelet does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from tests.support.cri_client import BUSYBOX, Cri, api, container
from tests.support.pods import Pods
from tests.support.waiting import until

Code = grpc.StatusCode
# Shares no layer with the images that stay on the node.
OTHER = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
# What a kubelet takes for "try again later"; any of these names its reason.
NODE_FAULTS = {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
_TRAP = "trap 'exit 7' TERM; : > /trapped; while :; do sleep 0.05; done"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: `code` is OK when it succeeded."""

    code: Code
    text: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A verb in a pod of its own. `make` may be repeated; `holds` is true after its effect."""

    make: Callable[[], object]
    holds: Callable[[], object] = lambda: True


def outcome(make: Callable[[], object]) -> Outcome:
    """Of one call."""
    try:
        make()
    except grpc.RpcError as error:
        return Outcome(error.code(), error.details() or "")
    return Outcome(Code.OK)


def _run_pod_sandbox(pods: Pods) -> Call:
    config = pods.config()

    def named() -> list[str]:
        return [one.id for one in pods.cri.pods() if one.metadata == config.metadata]

    def make() -> None:
        for failed in named():  # what a failed call has left, listed as NOTREADY
            pods.cri.remove_pod(failed)
        pods.cri.run(config)

    def ready() -> bool:
        (sandbox,) = named()
        return bool(pods.cri.pod_status(sandbox).state == api.SANDBOX_READY)

    return Call(make, ready)


def _create_container(pods: Pods) -> Call:
    sandbox, config = pods.sandbox()

    def there() -> list[api.Container]:
        return [one for one in pods.cri.containers() if one.pod_sandbox_id == sandbox]

    def make() -> None:
        for failed in there():
            pods.cri.remove(failed.id)
        pods.cri.create(sandbox, container("main", ["sleep", "100000"]), config)

    return Call(make, lambda: [one.state for one in there()] == [api.CONTAINER_CREATED])


def _start_container(pods: Pods) -> Call:
    sandbox, config = pods.sandbox()
    made = [pods.cri.create(sandbox, container("main", ["sleep", "100000"]), config)]

    def make() -> None:
        if pods.cri.status(made[-1]).state == api.CONTAINER_EXITED:  # a start that failed
            pods.cri.remove(made[-1])
            made.append(pods.cri.create(sandbox, container("main", ["sleep", "100000"]), config))
        pods.cri.start(made[-1])

    return Call(make, lambda: pods.cri.status(made[-1]).state == api.CONTAINER_RUNNING)


def _exec_sync(pods: Pods) -> Call:
    running = pods.running()

    def make() -> None:
        answer = pods.cri.exec(running, "echo", "alive")
        assert (answer.exit_code, answer.stdout) == (0, b"alive\n")

    return Call(make)


def trapping(pods: Pods) -> str:
    """A container that ends with code 7 when it is stopped."""
    running = pods.running("sh", "-c", _TRAP)
    until(lambda: not pods.cri.exec(running, "test", "-e", "/trapped").exit_code, "the trap")
    return running


def _stop_container(pods: Pods) -> Call:
    running = trapping(pods)

    def ended() -> bool:
        status = pods.cri.status(running)
        return (status.state, status.exit_code) == (api.CONTAINER_EXITED, 7)

    return Call(lambda: pods.cri.stop(running, 20), ended)


def _remove_container(pods: Pods) -> Call:
    running = pods.running()
    return Call(
        lambda: pods.cri.remove(running),
        lambda: running not in {one.id for one in pods.cri.containers()},
    )


def _stop_pod_sandbox(pods: Pods) -> Call:
    sandbox, config = pods.sandbox()
    pods.running(pod=(sandbox, config))
    return Call(
        lambda: pods.cri.stop_pod(sandbox),
        lambda: pods.cri.pod_status(sandbox).state == api.SANDBOX_NOTREADY,
    )


def _remove_pod_sandbox(pods: Pods) -> Call:
    sandbox, config = pods.sandbox()
    pods.running(pod=(sandbox, config))
    return Call(
        lambda: pods.cri.remove_pod(sandbox),
        lambda: sandbox not in {one.id for one in pods.cri.pods()},
    )


def _tags(cri: Cri) -> set[str]:
    return {tag for image in cri.images() for tag in image.repo_tags}


def _pull_image(pods: Pods) -> Call:
    with contextlib.suppress(grpc.RpcError):
        pods.cri.remove_image(OTHER)
    return Call(lambda: pods.cri.pull(OTHER), lambda: OTHER in _tags(pods.cri))


def _remove_image(pods: Pods) -> Call:
    pods.cri.pull(OTHER)
    return Call(lambda: pods.cri.remove_image(OTHER), lambda: OTHER not in _tags(pods.cri))


def _update_container_resources(pods: Pods) -> Call:
    running = pods.running()
    request = api.UpdateContainerResourcesRequest(container_id=running)
    request.linux.oom_score_adj = 500
    return Call(lambda: pods.cri.runtime.UpdateContainerResources(request, timeout=60))


def _checkpoint_container(pods: Pods) -> Call:
    running = trapping(pods)  # one that CRIU may interrupt in a system call
    archive = pods.logs / "checkpoint.tar"

    def make() -> None:
        archive.unlink(missing_ok=True)
        request = api.CheckpointContainerRequest(container_id=running, location=str(archive))
        pods.cri.runtime.CheckpointContainer(request, timeout=60)

    return Call(make, archive.exists)


def _reopen_container_log(pods: Pods) -> Call:
    running = pods.running()
    request = api.ReopenContainerLogRequest(container_id=running)
    return Call(lambda: pods.cri.runtime.ReopenContainerLog(request, timeout=60))


def lists(cri: Cri, container_id: str, sandbox: str) -> list[Callable[[], object]]:
    """Every call that only looks."""
    runtime, image = cri.runtime, cri.image
    return [
        lambda: runtime.Version(api.VersionRequest(), timeout=30),
        lambda: runtime.Status(api.StatusRequest(verbose=True), timeout=30),
        cri.pods,
        cri.containers,
        cri.images,
        lambda: cri.status(container_id),
        lambda: cri.pod_status(sandbox),
        lambda: image.ImageStatus(
            api.ImageStatusRequest(image=api.ImageSpec(image=BUSYBOX)), timeout=30
        ),
        lambda: image.ImageFsInfo(api.ImageFsInfoRequest(), timeout=30),
        lambda: runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=30),
        lambda: runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest(), timeout=30),
        lambda: runtime.ContainerStats(
            api.ContainerStatsRequest(container_id=container_id), timeout=30
        ),
        lambda: runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest(), timeout=30),
    ]


def _list(pods: Pods) -> Call:
    sandbox, config = pods.sandbox()
    calls = lists(pods.cri, pods.running(pod=(sandbox, config)), sandbox)

    def make() -> None:
        for call in calls:
            call()

    return Call(make)


VERBS: dict[str, Callable[[Pods], Call]] = {
    "RunPodSandbox": _run_pod_sandbox,
    "CreateContainer": _create_container,
    "StartContainer": _start_container,
    "ExecSync": _exec_sync,
    "UpdateContainerResources": _update_container_resources,
    "CheckpointContainer": _checkpoint_container,
    "ReopenContainerLog": _reopen_container_log,
    "StopContainer": _stop_container,
    "RemoveContainer": _remove_container,
    "StopPodSandbox": _stop_pod_sandbox,
    "RemovePodSandbox": _remove_pod_sandbox,
    "PullImage": _pull_image,
    "RemoveImage": _remove_image,
    "List and Status": _list,
}
