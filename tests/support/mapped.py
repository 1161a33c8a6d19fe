# SPDX-License-Identifier: Apache-2.0
"""Pods with user namespaces, as the kubelet asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.cri_client import api

HOST = 131072
LENGTH = 65536


def mapping(host: int = HOST, length: int = LENGTH, first: int = 0) -> api.IDMapping:
    return api.IDMapping(host_id=host, container_id=first, length=length)


def mapped(
    host: int = HOST, length: int = LENGTH, **fields: object
) -> Callable[[api.PodSandboxConfig], None]:
    """Gives a pod the ids from `host` on."""

    def change(config: api.PodSandboxConfig) -> None:
        options = config.linux.security_context.namespace_options
        options.userns_options.mode = api.POD
        options.userns_options.uids.append(mapping(host, length))
        options.userns_options.gids.append(mapping(host, length))
        for name, value in fields.items():
            setattr(options, name, value)

    return change


def volume(
    source: Path, host: int = HOST, **fields: object
) -> Callable[[api.ContainerConfig], None]:
    """A mount at /volume with the pod's mappings, as the kubelet asks for it."""

    def change(config: api.ContainerConfig) -> None:
        config.mounts.append(
            api.Mount(
                container_path="/volume",
                host_path=str(source),
                uidMappings=[mapping(host)],
                gidMappings=[mapping(host)],
                **fields,  # type: ignore[arg-type]
            )
        )

    return change
