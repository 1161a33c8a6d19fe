# SPDX-License-Identifier: Apache-2.0
"""Probes that hang, fail and recover."""

from __future__ import annotations

from pathlib import Path

from tests.support.kubelet_node import (
    LIMIT_S,
    PROBE_S,
    SLEEP,
    Json,
    Kubelet,
    ids,
    ready,
    restarts,
    shell,
    sleeper,
    states,
    until,
    volume,
)

# Answers at /cgi-bin/probe; while /box/hang exists it never does.
_SERVER = """
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\n[ ! -e /box/hang ] || exec sleep 4246\\n' > /www/cgi-bin/probe
printf 'printf "Content-Type: text/plain\\\\r\\\\n\\\\r\\\\nfine"\\n' >> /www/cgi-bin/probe
chmod +x /www/cgi-bin/probe
exec httpd -f -p 8080 -h /www
"""
_HANGING = "[ ! -e /box/hang ] || { echo x >> /box/hung; sleep 4242 & sleep 4243; }"
_HTTP = {"httpGet": {"path": "/cgi-bin/probe", "port": 8080}}
_EXEC = {"exec": {"command": ["sh", "-c", _HANGING]}}
_TCP = {"tcpSocket": {"port": 8080}}
_OFTEN = {"periodSeconds": 1, "timeoutSeconds": PROBE_S, "failureThreshold": 1}


def _pod(*containers: Json) -> Json:
    for one in containers:
        one["volumeMounts"] = [{"name": "box", "mountPath": "/box"}]
    return {"volumes": [{"name": "box", "emptyDir": {}}], "containers": list(containers)}


def test_readiness_falls_with_a_hanging_exec_whose_whole_tree_is_killed(kubelet: Kubelet) -> None:
    kubelet.add("ready-exec", _pod(sleeper("main", readinessProbe={**_EXEC, **_OFTEN})))
    first = kubelet.until_ready("ready-exec")
    sandbox = volume(first, "box")
    (sandbox / "hang").touch()
    kubelet.until("ready-exec", lambda pod: not ready(pod), "a failed probe")
    until(lambda: (sandbox / "hung").read_text().count("x") > 1, "a second time-out", PROBE_S * 3)
    # The cgroups of commands come and go too fast for cAdvisor: it must not take them for its own.
    until(lambda: _running("sleep 4243"), "a third try", LIMIT_S)
    assert "/exec-" not in kubelet.text("/metrics/cadvisor")
    (sandbox / "hang").unlink()
    after = kubelet.until_ready("ready-exec")
    until(
        lambda: not _running("sleep 4242") + _running("sleep 4243"), "the trees' end", PROBE_S * 3
    )
    assert (ids(after), restarts(after)) == (ids(first), {"main": 0})
    kubelet.until_logged(r'Probe failed.*probeType="Readiness" pod="default/ready-exec-.*timed out')


def test_liveness_restarts_a_container_whose_probe_hangs(kubelet: Kubelet) -> None:
    clean = "rm -f /box/hang; touch /box/up\n"
    exec_probe, http_probe = ({"livenessProbe": {**kind, **_OFTEN}} for kind in (_EXEC, _HTTP))
    http_probe["livenessProbe"]["initialDelaySeconds"] = 2
    kubelet.add("live-exec", _pod(shell("main", clean + SLEEP, **exec_probe)))
    kubelet.add("live-http", _pod(shell("main", clean + _SERVER, **http_probe)))
    for name in ("live-exec", "live-http"):
        sandbox = volume(kubelet.until_ready(name), "box")
        until((sandbox / "up").exists, "the script's start", LIMIT_S)
        (sandbox / "hang").touch()
    for name in ("live-exec", "live-http"):
        after = kubelet.until(
            name, lambda pod: restarts(pod)["main"] == 1 and ready(pod), "a restart"
        )
        last = after["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert last["reason"] in {"Completed", "Error"}
        assert ids(after)["main"] != last["containerID"]
    until(
        lambda: not _running("sleep 4246"), "the end of the old container's processes", PROBE_S * 3
    )
    kubelet.until_logged("Container main failed liveness probe, will be restarted")


def test_readiness_follows_a_server_that_hangs_and_one_that_closes(kubelet: Kubelet) -> None:
    kubelet.add("ready-http", _pod(shell("main", _SERVER, readinessProbe={**_HTTP, **_OFTEN})))
    opened, closed = "[ -e /box/hang ] || httpd -p 8080", "[ ! -e /box/hang ] || killall httpd"
    script = f"while sleep 0.1; do {opened}; {closed}; done"
    kubelet.add("ready-tcp", _pod(shell("main", script, readinessProbe={**_TCP, **_OFTEN})))
    firsts = {name: kubelet.until_ready(name) for name in ("ready-http", "ready-tcp")}
    for pod in firsts.values():
        (volume(pod, "box") / "hang").touch()
    for name, pod in firsts.items():
        kubelet.until(name, lambda pod: not ready(pod), "a failed probe")
        (volume(pod, "box") / "hang").unlink()
    for name, pod in firsts.items():
        after = kubelet.until_ready(name)
        assert (ids(after), restarts(after)) == (ids(pod), {"main": 0})


def test_a_connection_that_nobody_answers_is_a_failed_probe(kubelet: Kubelet) -> None:
    # An address of the pods' network that no pod has: the kernel asks for its owner for seconds.
    nobody = {"tcpSocket": {"port": 80, "host": "10.88.255.254"}, "timeoutSeconds": 1}
    kubelet.add("nobody", _pod(sleeper("main", readinessProbe={**nobody, "periodSeconds": 1})))
    kubelet.until_logged(r'Probe failed.*pod="default/nobody-.*i/o timeout')
    pod = kubelet.until("nobody", lambda pod: "running" in states(pod).get("main", {}), "its start")
    assert not ready(pod)
    assert restarts(pod) == {"main": 0}


def test_a_startup_probe_holds_the_others_off_and_restarts_at_its_end(kubelet: Kubelet) -> None:
    slow = "sleep 3; touch /box/up; sleep 1000000"
    up = {"exec": {"command": ["test", "-e", "/box/up"]}, "periodSeconds": 1}
    never = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2}
    probes = {
        "startupProbe": {**up, "timeoutSeconds": PROBE_S, "failureThreshold": 60},
        "livenessProbe": {**up, "timeoutSeconds": PROBE_S, "failureThreshold": 1},
    }
    kubelet.add("slow", _pod(shell("main", slow, **probes)))
    kubelet.add("never", _pod(sleeper("main", startupProbe={**never, "timeoutSeconds": PROBE_S})))
    assert restarts(kubelet.until_ready("slow")) == {"main": 0}
    kubelet.until("never", lambda pod: restarts(pod).get("main", 0) >= 1, "a restart")
    kubelet.until_logged("Container main failed startup probe, will be restarted")


def _running(command: str) -> list[int]:
    """Processes of the node with that command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().replace("\0", " ").strip()
        except OSError:
            continue
        if entry.name.isdigit() and words == command:
            found.append(int(entry.name))
    return found
