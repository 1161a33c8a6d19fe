# SPDX-License-Identifier: Apache-2.0
"""The JSON documents of a container's checkpoint, in the field's layout.

Their names and keys are those of github.com/checkpoint-restore/checkpointctl (lib/metadata.go),
which containerd, CRI-O and Podman share. Synchronous.
"""

from __future__ import annotations

import dataclasses
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.spec.inputs import OciObject

_NEVER = "0001-01-01T00:00:00Z"
# What every container has at these paths belongs to the node or the pod.
_NOT_VOLUMES = frozenset({"/dev", "/dev/shm", "/proc", "/run", "/run/secrets", "/sys"})  # noqa: S108


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a checkpoint is about."""

    container: Container
    sandbox: Sandbox
    spec: OciObject  # config.json as the OCI runtime got it


def write_documents(top: Path, about: Subject, now_ns: int) -> None:
    """config.dump, spec.dump, status, network.status and bind.mounts in the directory `top`."""
    container = about.container
    _write(
        top / "config.dump",
        {
            "id": container.id,
            "name": container.spec.metadata.name,
            "rootfsImage": container.image_name or container.spec.image,
            "rootfsImageRef": container.image_ref,
            "rootfsImageName": container.image_name or container.spec.image,
            "runtime": container.handler,
            "createdTime": _time(container.created_at_ns),
            "checkpointedTime": _time(now_ns),
            "restoredTime": _NEVER,
            "restored": False,
        },
    )
    _write(top / "spec.dump", _with_names(about))
    _write(
        top / "status",
        {
            "CreatedAt": container.created_at_ns,
            "StartedAt": container.started_at_ns,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Pid": 0 if container.init is None else container.init.pid,
            "Reason": "",
            "Message": "",
        },
    )
    subnets = [{"ipnet": _network(address)} for address in about.sandbox.addresses]
    if subnets:
        _write(top / "network.status", {"pod": {"interfaces": {"eth0": {"subnets": subnets}}}})
    if binds := _bind_mounts(about.spec):
        _write(top / "bind.mounts", binds)


def write_deleted(top: Path, deleted: list[str]) -> None:
    """deleted.files: what the image has and the container has not."""
    if deleted:
        _write(top / "deleted.files", [_text(path) for path in deleted])


def destinations(spec: OciObject) -> frozenset[str]:
    """Where the specification mounts something in the container."""
    return frozenset(str(mount["destination"]) for mount in spec.get("mounts", ()))


def mount_points(spec: OciObject) -> frozenset[str]:
    """Where something is mounted in the container, without leading slashes."""
    return frozenset(path.strip("/") for path in destinations(spec))


def _with_names(about: Subject) -> OciObject:
    """The specification with the annotations by which tools find out whose it was."""
    metadata = about.sandbox.spec.metadata
    names = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": about.container.spec.metadata.name,
        "io.kubernetes.cri.sandbox-id": about.sandbox.id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
        "io.container.manager": "criagent",
    }
    return {**about.spec, "annotations": {**about.spec.get("annotations", {}), **names}}


def _bind_mounts(spec: OciObject) -> list[dict[str, Any]]:
    found = []
    for mount in spec.get("mounts", ()):
        if mount.get("type") != "bind" or mount["destination"] in _NOT_VOLUMES:
            continue
        source = Path(mount["source"])
        try:
            mode = source.stat().st_mode
        except OSError:
            continue  # its volume is gone
        found.append(
            {
                "source": str(source),
                "destination": mount["destination"],
                "file_type": "directory" if stat.S_ISDIR(mode) else "file",
                "permissions": stat.S_IMODE(mode),
            }
        )
    return found


def _network(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _text(path: str) -> str:
    """A path for JSON, which has no other bytes than those of UTF-8."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _write(path: Path, document: object) -> None:
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
