# SPDX-License-Identifier: Apache-2.0
"""Pods and containers by what a person types: an id, the beginning of one, or a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from criagent.cli.containers.calls import LIMIT_S, Calls, CommandError

if TYPE_CHECKING:
    from criagent._proto import api_pb2

_SHOWN = 5  # candidates of an ambiguous name
T = TypeVar("T", "api_pb2.PodSandbox", "api_pb2.Container")


def all_pods(calls: Calls) -> list[api_pb2.PodSandbox]:
    """Every pod, the newest first."""
    from criagent._proto import api_pb2

    answer = calls.runtime.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=LIMIT_S)
    return sorted(answer.items, key=lambda pod: -pod.created_at)


def all_containers(calls: Calls) -> list[api_pb2.Container]:
    """Every container, the newest first."""
    from criagent._proto import api_pb2

    answer = calls.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=LIMIT_S)
    return sorted(answer.containers, key=lambda container: -container.created_at)


def pod_of(text: str, pods: Sequence[api_pb2.PodSandbox]) -> api_pb2.PodSandbox:
    """The pod with this id, unique beginning of an id, NAME or NAMESPACE/NAME.

    Of several attempts of one pod the newest is meant. `pods` has the newest first. Raises
    CommandError when there is none or more than one.
    """
    return _chosen("pod", text, _pods(text, pods), _pod_text)


def container_of(
    text: str, containers: Sequence[api_pb2.Container], pods: Sequence[api_pb2.PodSandbox]
) -> api_pb2.Container:
    """The container with this id, unique beginning of an id, NAME or POD/NAME.

    Of several attempts in one pod the newest is meant. Both lists have the newest first. Raises
    CommandError when there is none or more than one.
    """
    owners = {pod.id: pod for pod in pods}

    def shown(container: api_pb2.Container) -> str:
        return _container_text(container, owners)

    return _chosen("container", text, _containers(text, containers, owners), shown)


def container_or_pod(
    text: str, containers: Sequence[api_pb2.Container], pods: Sequence[api_pb2.PodSandbox]
) -> api_pb2.Container | api_pb2.PodSandbox:
    """What `text` names, of either kind. Raises CommandError when it could be both or nothing."""
    owners = {pod.id: pod for pod in pods}
    of_containers, of_pods = _containers(text, containers, owners), _pods(text, pods)
    if of_containers and of_pods:
        both = [_container_text(one, owners) for one in of_containers]
        both += [_pod_text(pod) for pod in of_pods]
        raise CommandError(
            f"{text!r} names a container and a pod: {', '.join(both[:_SHOWN])}; choose with --type"
        )
    if of_containers:
        return container_of(text, containers, pods)
    if of_pods:
        return pod_of(text, pods)
    raise CommandError(
        f"no container or pod {text!r}; `criagent ps -a` and `criagent pods` list them"
    )


def _pods(text: str, pods: Sequence[api_pb2.PodSandbox]) -> list[api_pb2.PodSandbox]:
    newest: dict[tuple[str, str], api_pb2.PodSandbox] = {}
    for pod in pods:
        of_pod = (pod.metadata.namespace, pod.metadata.name)
        if text in {pod.metadata.name, "/".join(of_pod)}:
            newest.setdefault(of_pod, pod)
    return _with_ids(text, pods, list(newest.values()))


def _containers(
    text: str,
    containers: Sequence[api_pb2.Container],
    owners: dict[str, api_pb2.PodSandbox],
) -> list[api_pb2.Container]:
    newest: dict[tuple[str, str, str], api_pb2.Container] = {}
    for container in containers:
        name, pod = container.metadata.name, owners.get(container.pod_sandbox_id)
        of_pod = (pod.metadata.namespace, pod.metadata.name) if pod else ("", "")
        if text in {name, f"{of_pod[1]}/{name}", f"{of_pod[0]}/{of_pod[1]}/{name}"}:
            newest.setdefault((*of_pod, name), container)
    return _with_ids(text, containers, list(newest.values()))


def _with_ids(text: str, objects: Sequence[T], named: list[T]) -> list[T]:
    """A name and the beginning of another's id are ambiguous: neither is preferred."""
    for one in objects:
        if one.id == text:
            return [one]
    by_id = [one for one in objects if text and one.id.startswith(text)]
    return named + [one for one in by_id if all(one.id != other.id for other in named)]


def _chosen(kind: str, text: str, found: list[T], shown: Callable[[T], str]) -> T:
    if not found:
        command = "criagent pods" if kind == "pod" else "criagent ps -a"
        raise CommandError(f"no {kind} {text!r}; `{command}` lists them")
    if len(found) > 1:
        candidates = ", ".join(shown(one) for one in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CommandError(
            f"{text!r} is ambiguous: {candidates}{more}; give more of the id or the name"
        )
    return found[0]


def _pod_text(pod: api_pb2.PodSandbox) -> str:
    return f"{pod.id[:13]} (pod {pod.metadata.namespace}/{pod.metadata.name})"


def _container_text(container: api_pb2.Container, owners: dict[str, api_pb2.PodSandbox]) -> str:
    pod = owners.get(container.pod_sandbox_id)
    of_pod = f"{pod.metadata.namespace}/{pod.metadata.name}/" if pod else ""
    return f"{container.id[:13]} ({of_pod}{container.metadata.name})"
