"""A standalone kubelet as a systemd service, static pods, and what the kubelet says of them."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cri_client import BUSYBOX, Cri
from units import show, systemctl
from waiting import until

Json = dict[str, Any]

MANIFESTS = Path("/etc/kubernetes/manifests")
READ_ONLY = "http://127.0.0.1:10255"
CONFIG: Json = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/criagent/criagent.sock",
    "staticPodPath": str(MANIFESTS),
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "readOnlyPort": 10255,
    "failSwapOn": False,
    "containerLogMaxSize": "100Ki",
    "containerLogMaxFiles": 3,
    "containerLogMonitorInterval": "3s",
    "runtimeRequestTimeout": "10m",
    "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
    "featureGates": {"KubeletCrashLoopBackOffMax": True},
}
_UNIT = """[Service]
ExecStart=/opt/tools/bin/kubelet --config=/etc/kubernetes/kubelet.json --v=2 \
    --hostname-override=criagent-vm --node-ip=10.0.2.15
Restart=no
KillMode=process
"""
LIMIT_S = 400


class Kubelet:
    """The service and its pods."""

    def start(self, **config: Any) -> None:
        """Start it with `config` over CONFIG. cgroupDriver is not in there: the agent tells it."""
        MANIFESTS.mkdir(parents=True, exist_ok=True)
        Path("/etc/kubernetes/kubelet.json").write_text(json.dumps({**CONFIG, **config}))
        Path("/etc/systemd/system/kubelet.service").write_text(_UNIT)
        systemctl("daemon-reload")
        systemctl("start", "kubelet")
        self.until_healthy()

    def stop(self) -> None:
        systemctl("stop", "kubelet")

    def restart(self) -> None:
        systemctl("restart", "kubelet")
        self.until_healthy()

    def until_healthy(self) -> None:
        until(self._healthy, "a healthy kubelet", LIMIT_S)

    def add(self, name: str, spec: Json, **metadata: Any) -> None:
        """A static pod of `spec`, whose containers are of busybox unless they name an image."""
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            container.setdefault("image", BUSYBOX)
            container.setdefault("imagePullPolicy", "IfNotPresent")
        spec.setdefault("terminationGracePeriodSeconds", 3)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}}
        new = MANIFESTS.parent / f"{name}.new"
        new.write_text(json.dumps({**pod, "spec": spec}))
        new.rename(MANIFESTS / f"{name}.json")

    def remove(self, name: str) -> None:
        """Take the manifest away and wait until nothing is left of the pod."""
        (MANIFESTS / f"{name}.json").unlink()
        cri = Cri()  # the kubelet forgets it before its containers have ended
        try:
            until(
                lambda: f"{name}-criagent-vm" not in {box.metadata.name for box in cri.pods()},
                f"the removal of pod {name}",
                LIMIT_S,
            )
        finally:
            cri.close()

    def pods(self) -> list[Json]:
        """Its pods with their status."""
        found: list[Json] = self.get("/pods")["items"] or []
        return found

    def pod(self, name: str) -> Json | None:
        """The pod of that name."""
        full = f"{name}-criagent-vm"
        return next((pod for pod in self.pods() if pod["metadata"]["name"] == full), None)

    def statuses(self, name: str, kind: str = "containerStatuses") -> dict[str, Json]:
        """Container statuses by name; {} while there are none."""
        pod = self.pod(name) or {}
        return {one["name"]: one for one in pod.get("status", {}).get(kind, ())}

    def until_ready(self, name: str) -> Json:
        """The pod, once all of its containers are ready."""
        self.until(
            name,
            lambda pod: any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in pod["status"].get("conditions", ())
            ),
            "readiness",
        )
        pod = self.pod(name)
        assert pod is not None
        return pod

    def until(self, name: str, holds: Callable[[Json], object], what: str) -> None:
        """Wait until the kubelet says of the pod that `holds`."""

        def look() -> bool:
            pod = self.pod(name)
            return pod is not None and bool(holds(pod))

        try:
            until(look, f"{what} of pod {name}", LIMIT_S)
        except AssertionError:
            print(json.dumps(self.pod(name), indent=1)[-3000:])
            print(self.journal()[-3000:])
            raise

    def get(self, path: str) -> Json:
        """A document of its read-only port."""
        with urllib.request.urlopen(READ_ONLY + path, timeout=60) as answer:
            document: Json = json.load(answer)
        return document

    def journal(self, *words: str) -> str:
        """What it has logged."""
        command = ["journalctl", "--unit=kubelet", "--no-pager", "--output=cat", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def _healthy(self) -> bool:
        assert show("kubelet", "ActiveState") == "active", self.journal()[-3000:]
        try:
            with urllib.request.urlopen("http://127.0.0.1:10248/healthz", timeout=30) as answer:
                healthy = answer.status == 200
            self.pods()  # on a port of its own, which opens later
        except OSError:
            return False
        return healthy


def restarts(pod: Json) -> dict[str, int]:
    """Restart counts of a pod's containers, of init containers as well."""
    status = pod["status"]
    every = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
    return {one["name"]: one["restartCount"] for one in every}


def ids(pod: Json) -> dict[str, str]:
    """Container ids of a pod by container name."""
    return {one["name"]: one.get("containerID", "") for one in pod["status"]["containerStatuses"]}
