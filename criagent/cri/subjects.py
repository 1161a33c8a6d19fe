# SPDX-License-Identifier: Apache-2.0
"""The subject of a request: the pod, container and image that its log lines and spans name."""

from __future__ import annotations

from typing import Any, TypeVar

from criagent._proto import admin_pb2, api_pb2
from criagent.base.errors import AgentError
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.store.containers import ContainerStore
from criagent.store.rows import RowStore
from criagent.store.sandboxes import SandboxStore

R = TypeVar("R", Sandbox, Container)
Facts = dict[str, str]

_ID_FIELDS: dict[type, str] = {}  # by kind of request, filled on demand
_NO_SUBJECT: set[type] = set()  # kinds of requests that name none, filled on demand


class Subjects:
    """Reads requests; looks up in the stores what a request names only by id."""

    def __init__(self, sandboxes: SandboxStore, containers: ContainerStore) -> None:
        self._sandboxes = sandboxes
        self._containers = containers

    def of(self, request: Any) -> Facts:
        """Facts of `request`, as far as it has them: pod ("namespace/name"), pod_uid, sandbox_id,
        container, container_id and image.

        Empty for lists and similar calls. An unknown id is returned as it was sent.
        """
        if type(request) in _NO_SUBJECT:
            return {}
        match request:
            case api_pb2.RunPodSandboxRequest():
                return _pod(request.config.metadata)
            case api_pb2.CreateContainerRequest():
                return {
                    **_pod(request.sandbox_config.metadata),
                    **self._sandbox(request.pod_sandbox_id),
                    "container": request.config.metadata.name,
                    "image": _image(request.config.image),
                }
            case api_pb2.PullImageRequest():
                return {**_pod(request.sandbox_config.metadata), "image": _image(request.image)}
            case api_pb2.ImageStatusRequest() | api_pb2.RemoveImageRequest():
                return {"image": _image(request.image)}
            case admin_pb2.TagImageRequest():
                return {"image": request.image}
        field = _id_field(type(request))
        if not field:
            _NO_SUBJECT.add(type(request))
            return {}
        found = getattr(request, field)
        return self._container(found) if field == "container_id" else self._sandbox(found)

    def _sandbox(self, sandbox_id: str) -> Facts:
        sandbox = _found(self._sandboxes, sandbox_id)
        if sandbox is None:
            return {"sandbox_id": sandbox_id}
        return {"sandbox_id": sandbox.id, **sandbox.spec.metadata.facts}

    def _container(self, container_id: str) -> Facts:
        container = _found(self._containers, container_id)
        if container is None:
            return {"container_id": container_id}
        return {
            "container_id": container.id,
            "container": container.spec.metadata.name,
            "image": container.spec.user_specified_image or container.spec.image,
            **self._sandbox(container.sandbox_id),
        }


def _id_field(kind: type) -> str:
    """The request's field that names its object; "" for lists and streams of requests."""
    found = _ID_FIELDS.get(kind)
    if found is None:
        fields = getattr(getattr(kind, "DESCRIPTOR", None), "fields_by_name", ())
        names = (name for name in ("container_id", "pod_sandbox_id") if name in fields)
        found = _ID_FIELDS[kind] = next(names, "")
    return found


def _pod(metadata: api_pb2.PodSandboxMetadata) -> Facts:
    if not metadata.name:
        return {}
    return {"pod": f"{metadata.namespace}/{metadata.name}", "pod_uid": metadata.uid}


def _image(image: api_pb2.ImageSpec) -> str:
    return str(image.user_specified_image or image.image)


def _found(store: RowStore[R], object_id: str) -> R | None:
    if (found := store.get(object_id)) is not None:
        return found
    try:
        return store.resolve(object_id)
    except AgentError:
        return None
