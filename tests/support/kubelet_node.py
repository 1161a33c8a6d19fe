# SPDX-License-Identifier: Apache-2.0
"""A standalone kubelet, its static pods, and what it says of them: one face on two grounds.

In the VM it is a systemd service with cgroups for every QoS class; in the test node it is a child
of the tests, and without cgroup controllers it manages no cgroups. `ground` is the one there is.
CRIAGENT_KUBELET_GATES names feature gates, separated by blanks, that are on in every kubelet.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, ClassVar

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.units import kill_agent, main_pid, restart_agent, show, systemctl

Json = dict[str, Any]

IN_VM = Path("/run/systemd/system").is_dir()
NODE = "node-a"
# Of the node, but not of its loopback. The test node has its pods' bridge alone.
ADDRESS = "10.0.2.15" if IN_VM else "10.88.0.1"
MANIFESTS = Path("/etc/kubernetes/manifests")
READ_ONLY = "http://127.0.0.1:10255"
SECURE = "https://127.0.0.1:10250"
CONFIG: Json = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/criagent/criagent.sock",
    "staticPodPath": str(MANIFESTS),
    "fileCheckFrequency": "1s",
    "volumeStatsAggPeriod": "10s",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "readOnlyPort": 10255,
    "failSwapOn": False,
    "containerLogMaxSize": "100Ki",
    "containerLogMaxFiles": 3,
    "containerLogMonitorInterval": "3s",
    "runtimeRequestTimeout": "10m",
    "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
    # By its default of 15 % a machine whose disk is rather full is under pressure.
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "1%",
        "imagefs.available": "1%",
    },
}
# Emulation is some twenty times slower: an exec is no matter of a second there.
LIMIT_S = 400 if IN_VM else 60
PROBE_S = 20 if IN_VM else 3
SLEEP = "trap 'exit 0' TERM; sleep 1000000 & wait"
_FILE = Path("/etc/kubernetes/kubelet.json")
_STATE = Path("/var/lib/kubelet")
# Volumes of pods with users of their own lie on file systems that can map ids.
HOST_DIRECTORIES = Path("/var/lib/test-host" if IN_VM else "/tmp/test-host")


def until(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """As waiting.until, but less often: each look costs the kubelet a document."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        select.select([], [], [], 1 if IN_VM else 0.05)


class VmGround:
    """systemd's service."""

    more_config: ClassVar[Json] = {}
    _unit = """[Service]
ExecStart=/opt/tools/bin/kubelet --config={file} --v=3 --vmodule=httplog=0 \
    --hostname-override={node} --node-ip={address}
Restart=no
KillMode=process
"""

    def start(self) -> None:
        unit = self._unit.format(file=_FILE, node=NODE, address=ADDRESS)
        Path("/etc/systemd/system/kubelet.service").write_text(unit)
        systemctl("daemon-reload")
        systemctl("start", "kubelet")

    def stop(self) -> None:
        systemctl("stop", "kubelet")

    def kill(self) -> None:
        systemctl("kill", "--signal=KILL", "kubelet")
        until(lambda: show("kubelet", "ActiveState") == "failed", "its end", LIMIT_S)
        systemctl("reset-failed", "kubelet")

    def running(self) -> bool:
        return show("kubelet", "ActiveState") == "active"

    def log(self) -> str:
        command = ["journalctl", "--unit=kubelet", "--no-pager", "--output=cat"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def kill_agent(self) -> None:
        """SIGKILL; returns when systemd's next one serves."""
        killed = kill_agent()

        def replaced() -> bool:
            active = show("criagent", "ActiveState") == "active"
            return active and main_pid("criagent") not in {0, killed}

        until(replaced, "the next agent", LIMIT_S)

    def restart_agent(self) -> None:
        restart_agent()


class NodeGround:
    """A process of the test node, where cgroups have no controllers."""

    more_config: ClassVar[Json] = {"cgroupsPerQOS": False, "enforceNodeAllocatable": []}
    _log = Path("/var/log/kubelet.log")

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("kubelet")
        assert program, "no kubelet on PATH; see tests/kubelet/run"
        if not _STATE.is_mount():  # the node's own root, an overlay, cannot map ids
            _STATE.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", _STATE], check=True)
        flags = [
            f"--config={_FILE}",
            "--v=3",
            f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}",
        ]
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                [program, *flags], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill_agent(self) -> None:
        """SIGKILL; returns when the next one serves."""
        agent.kill()
        agent.start().close()

    def restart_agent(self) -> None:
        agent.stop()
        agent.start().close()

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(LIMIT_S)


ground = VmGround() if IN_VM else NodeGround()


class Kubelet:
    """The kubelet and its pods."""

    def start(self, **config: Any) -> None:
        """Start it with `config` over CONFIG. cgroupDriver is not in there: the agent tells it."""
        MANIFESTS.mkdir(parents=True, exist_ok=True)
        gates = dict.fromkeys(os.environ.get("CRIAGENT_KUBELET_GATES", "").split(), True)
        gates |= config.pop("featureGates", {})
        _FILE.write_text(
            json.dumps({**CONFIG, **ground.more_config, "featureGates": gates, **config})
        )
        ground.start()
        self.until_healthy()

    def stop(self) -> None:
        ground.stop()

    def restart(self, **config: Any) -> None:
        """Stop and start it."""
        ground.stop()
        self.start(**config)

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

    def take(self, *names: str) -> None:
        """Take manifests away; without names, all of them."""
        for path in [MANIFESTS / f"{name}.json" for name in names] or list(MANIFESTS.iterdir()):
            path.unlink()

    def remove(self, *names: str) -> None:
        """Take manifests away, by default all, and wait until nothing runs of the pods.

        The kubelet's garbage collection, once a minute, removes their sandboxes.
        """
        gone = {f"{name}-{NODE}" for name in names or [path.stem for path in MANIFESTS.iterdir()]}
        self.take(*names)
        cri = Cri()  # the kubelet forgets it before its containers have ended

        def running() -> set[str]:
            sandboxes = {
                sandbox.metadata.name
                for sandbox in cri.pods()
                if sandbox.state == api.SANDBOX_READY
            }
            known = {pod["metadata"]["name"] for pod in self.pods()}
            return gone & (sandboxes | known)

        try:
            until(lambda: not running(), f"the end of pods {gone}", LIMIT_S)
        finally:
            cri.close()

    def pods(self) -> list[Json]:
        """Its pods with their status."""
        found: list[Json] = self.get("/pods")["items"] or []
        return found

    def pod(self, name: str) -> Json | None:
        """The pod of that name."""
        full = f"{name}-{NODE}"
        return next((pod for pod in self.pods() if pod["metadata"]["name"] == full), None)

    def statuses(self, name: str, kind: str = "containerStatuses") -> dict[str, Json]:
        """Container statuses by name; {} while there are none."""
        pod = self.pod(name) or {}
        return {one["name"]: one for one in pod.get("status", {}).get(kind, ())}

    def until_ready(self, name: str) -> Json:
        """The pod, once all of its containers are ready."""
        return self.until(name, ready, "readiness")

    def until(self, name: str, holds: Callable[[Json], object], what: str) -> Json:
        """The pod, once the kubelet says of it that `holds`."""
        seen: list[Json] = []

        def look() -> bool:
            pod = self.pod(name)
            seen[:] = [pod] if pod else []
            return pod is not None and bool(holds(pod))

        try:
            until(look, f"{what} of pod {name}", LIMIT_S)
        except AssertionError:
            print(json.dumps(seen, indent=1)[-3000:])
            print(self.journal()[-3000:])
            raise
        return seen[0]

    def get(self, path: str) -> Json:
        """A document of its read-only port."""
        document: Json = json.loads(self.text(path))
        return document

    def text(self, path: str) -> str:
        """What its read-only port says."""
        with urllib.request.urlopen(READ_ONLY + path, timeout=60) as answer:
            return str(answer.read().decode())

    def secure(self, path: str, method: str = "GET") -> HTTPResponse:
        """An answer of its own port, which `kubectl` uses through the API server."""
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        request = urllib.request.Request(SECURE + path, method=method)
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=LIMIT_S, context=trusting)
        return answer

    def logs(self, name: str, container: str, query: str = "") -> str:
        """What `kubectl logs` shows."""
        with self.secure(f"/containerLogs/default/{name}-{NODE}/{container}?{query}") as answer:
            return answer.read().decode()

    def journal(self) -> str:
        """What it has logged."""
        return ground.log()

    def until_logged(self, pattern: str) -> re.Match[str]:
        """The first match in its log."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.finditer(pattern, self.journal()))
            return bool(found)

        until(look, f"{pattern!r} in the kubelet's log", LIMIT_S)
        return found[0]

    def _healthy(self) -> bool:
        assert ground.running(), self.journal()[-3000:]
        try:
            with urllib.request.urlopen("http://127.0.0.1:10248/healthz", timeout=30) as answer:
                healthy = answer.status == 200
            self.pods()  # on a port of its own, which opens later
        except OSError:
            return False
        return healthy


def shell(name: str, script: str, **fields: Any) -> Json:
    """A container that runs a script of busybox's shell."""
    return {"name": name, "command": ["sh", "-c", script], **fields}


def sleeper(name: str, **fields: Any) -> Json:
    """A container that does nothing until SIGTERM."""
    return shell(name, SLEEP, **fields)


def ready(pod: Json) -> bool:
    """Whether the kubelet calls it ready."""
    conditions = pod["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def restarts(pod: Json) -> dict[str, int]:
    """Restart counts of a pod's containers, of init containers as well."""
    status = pod["status"]
    every = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
    return {one["name"]: one["restartCount"] for one in every}


def ids(pod: Json) -> dict[str, str]:
    """Container ids of a pod by container name."""
    return {one["name"]: one.get("containerID", "") for one in pod["status"]["containerStatuses"]}


def states(pod: Json) -> dict[str, Json]:
    """The state of each container by its name."""
    return {one["name"]: one["state"] for one in pod["status"].get("containerStatuses", ())}


def run(pod: Json, container: str, *command: str) -> str:
    """Output of a command in a container of the pod, which must succeed."""
    cri = Cri()
    try:
        container_id = ids(pod)[container].removeprefix("criagent://")
        answer = cri.exec(container_id, *command, timeout=60)
    finally:
        cri.close()
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.decode())


def volume(pod: Json, name: str, kind: str = "empty-dir") -> Path:
    """Where the kubelet keeps a volume of the pod."""
    return Path(_STATE, "pods", pod["metadata"]["uid"], "volumes", f"kubernetes.io~{kind}", name)
