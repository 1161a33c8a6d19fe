# SPDX-License-Identifier: Apache-2.0
"""Lifecycle hooks: by exec, by HTTP, by sleeping; one that fails."""

from __future__ import annotations

from pathlib import Path

from tests.support.kubelet_node import SLEEP, Json, Kubelet, restarts, shell, sleeper

_BOX = [{"name": "box", "mountPath": "/box"}]
# Notes each request to /cgi-bin/NAME in /box/NAME.
_NOTES = """
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\ndate +%%s > /box/$(basename $0)\\n' > /www/cgi-bin/begin
printf 'printf "Content-Type: text/plain\\\\r\\\\n\\\\r\\\\n"\\n' >> /www/cgi-bin/begin
cp /www/cgi-bin/begin /www/cgi-bin/end
chmod +x /www/cgi-bin/*
exec httpd -f -p 8080 -h /www
"""


def test_hooks_by_http(kubelet: Kubelet, host_directory: Path) -> None:
    volumes = [{"name": "box", "hostPath": {"path": str(host_directory)}}]
    server = shell("notes", _NOTES, volumeMounts=_BOX, readinessProbe={"tcpSocket": {"port": 8080}})
    kubelet.add("notes", {"volumes": volumes, "containers": [server]})
    address = kubelet.until_ready("notes")["status"]["podIP"]
    hooks = {
        event: {"httpGet": {"host": address, "port": 8080, "path": f"/cgi-bin/{path}"}}
        for event, path in (("postStart", "begin"), ("preStop", "end"))
    }
    kubelet.add("by-http", {"containers": [sleeper("main", lifecycle=hooks)]})
    kubelet.until_ready("by-http")
    assert (host_directory / "begin").exists()
    assert not (host_directory / "end").exists()
    kubelet.remove("by-http")
    assert (host_directory / "end").exists()


def test_hooks_by_exec_come_before_the_signal(kubelet: Kubelet, host_directory: Path) -> None:
    note = "echo {} >> /box/order"
    hooks = {
        event: {"exec": {"command": ["sh", "-c", note.format(event)]}}
        for event in ("postStart", "preStop")
    }
    script = f"trap '{note.format('signal')}; exit 0' TERM; while :; do sleep 0.1; done"
    kubelet.add(
        "by-exec",
        {
            "terminationGracePeriodSeconds": 60,
            "volumes": [{"name": "box", "hostPath": {"path": str(host_directory)}}],
            "containers": [shell("main", script, volumeMounts=_BOX, lifecycle=hooks)],
        },
    )
    kubelet.until_ready("by-exec")
    kubelet.remove("by-exec")
    assert (host_directory / "order").read_text().split() == ["postStart", "preStop", "signal"]


def test_a_sleeping_hook_delays_the_signal(kubelet: Kubelet, host_directory: Path) -> None:
    script = "trap 'date +%s > /box/signal; exit 0' TERM; while :; do sleep 0.1; done"
    mounted: Json = {"volumeMounts": _BOX}
    kubelet.add(
        "by-sleep",
        {
            "terminationGracePeriodSeconds": 60,
            "volumes": [{"name": "box", "hostPath": {"path": str(host_directory)}}],
            "containers": [
                shell("main", script, lifecycle={"preStop": {"sleep": {"seconds": 4}}}, **mounted),
                shell("at-once", script.replace("/box/", "/box/other-"), **mounted),
            ],
        },
    )
    kubelet.until_ready("by-sleep")
    kubelet.remove("by-sleep")
    late, early = (int((host_directory / name).read_text()) for name in ("signal", "other-signal"))
    assert late - early >= 3


def test_a_failing_post_start_hook_restarts_its_container(kubelet: Kubelet) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo no luck; exit 7"]}}}
    kubelet.add("bad-hook", {"containers": [shell("main", SLEEP, lifecycle=hook)]})
    kubelet.until("bad-hook", lambda pod: restarts(pod).get("main", 0) >= 1, "a restart")
    kubelet.until_logged(r'reason="FailedPostStartHook"')
