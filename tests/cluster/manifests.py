# SPDX-License-Identifier: Apache-2.0
"""Objects as the tests make them, short."""

from __future__ import annotations

from typing import Any

from tests.support.cri_client import BUSYBOX

Json = dict[str, Any]
SLEEP = ("sleep", "1000000")
# A page with the name of the pod and $VERSION. Signals of PID 1 have no default: the shell's trap.
_SERVE = (
    'trap "exit 0" TERM; mkdir -p /www; echo "$(hostname) $VERSION" > /www/index.html;'
    " httpd -f -h /www & wait"
)
WEB = ("sh", "-c", _SERVE)


def container(name: str, command: tuple[str, ...] = SLEEP, **fields: Any) -> Json:
    """One container of busybox, unless `image` says otherwise."""
    return {
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        **fields,
    }


def web(version: str = "v1", **fields: Any) -> Json:
    """A container that serves its page on port 80 and is ready when it does."""
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 20}
    environment = [{"name": "VERSION", "value": version}]
    return container("web", WEB, env=environment, readinessProbe=probe, **fields)


def spec(*containers: Json, **fields: Any) -> Json:
    """A pod's specification."""
    return {"containers": list(containers), "terminationGracePeriodSeconds": 2, **fields}


def pod(name: str, *containers: Json, **fields: Any) -> Json:
    """A pod; its label `app` is its name."""
    metadata = {"name": name, "labels": {"app": name}}
    wanted = spec(*(containers or (container("main"),)), **fields)
    return {"metadata": metadata, "spec": wanted}


def template(app: str, *containers: Json, **fields: Any) -> Json:
    """What workloads make pods of."""
    return {"metadata": {"labels": {"app": app}}, "spec": spec(*containers, **fields)}


def workload(name: str, *containers: Json, **fields: Any) -> Json:
    """A Deployment or a DaemonSet, with `fields` in its specification."""
    selector = {"matchLabels": {"app": name}}
    wanted = {"selector": selector, "template": template(name, *containers), **fields}
    return {"metadata": {"name": name}, "spec": wanted}


def service(name: str, **fields: Any) -> Json:
    """A Service for port 80 of the pods whose label `app` is its name."""
    port = {"port": 80, "targetPort": 80}
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [port], **fields},
    }
