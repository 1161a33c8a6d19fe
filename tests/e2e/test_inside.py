# SPDX-License-Identifier: Apache-2.0
"""`criagent ps`, `pods`, `inspect`, `logs`, `exec`, `stats`, `events` and `images` on real pods."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from criagent.cli.main import main
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api, container
from tests.support.metrics_page import value
from tests.support.pods import Pods
from tests.support.terminal import OnTerminal
from tests.support.waiting import until

pytestmark = pytest.mark.root

CRIAGENT = [sys.executable, "-m", "criagent"]


def run(*argv: str, status: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*CRIAGENT, *argv], input=stdin, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def out(*argv: str) -> str:
    return run(*argv).stdout.decode()


def lines(*argv: str) -> list[str]:
    return out(*argv).splitlines()


def ids(*argv: str) -> list[str]:
    """What a list prints with -q, by a call within this process: many cases, one start."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert main([*argv, "-q"]) == 0
    return shown.getvalue().splitlines()


def listed(*argv: str) -> Any:
    return json.loads(out(*argv, "--output", "json"))


def error(*argv: str, status: int = 1) -> str:
    return run(*argv, status=status).stderr.decode()


@contextmanager
def going(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*CRIAGENT, *argv], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def pod_of(
    pods: Pods, name: str, namespace: str = "shop", **labels: str
) -> tuple[str, api.PodSandboxConfig]:
    def change(config: api.PodSandboxConfig) -> None:
        config.metadata.name, config.metadata.namespace = name, namespace
        config.labels.update(labels)

    return pods.sandbox(change)


def main_in(
    pods: Pods,
    pod: tuple[str, api.PodSandboxConfig],
    script: str = "",
    name: str = "main",
    *,
    stdin: bool = False,
) -> str:
    def change(config: api.ContainerConfig) -> None:
        config.metadata.name = name
        config.stdin = stdin

    command = ("sh", "-c", script) if script else ()
    return pods.running(*command, change=change, pod=pod)


# --- ps and pods -----------------------------------------------------------------------------


def test_lists_have_what_runs_and_filters_narrow_them(cri: Cri, pods: Pods) -> None:
    web, db = pod_of(pods, "web", app="front"), pod_of(pods, "db", "data")
    front, back = main_in(pods, web), main_in(pods, db)
    ended = main_in(pods, db, "exit 3", "job")
    cri.stop(ended)

    head, *rows = lines("ps")
    assert head.split()[:4] == ["CONTAINER", "IMAGE", "AGE", "STATE"]
    assert [row.split()[0] for row in rows] == [back[:13], front[:13]]  # the newest first
    assert rows[1].split()[-5:] == ["main", "0", web[0][:13], "web", "shop"]
    assert BUSYBOX in rows[1]
    for options, wanted in {
        ("--all",): [ended, back, front],
        ("--state", "exited"): [ended],
        ("--pod", "web"): [front],
        ("--pod", "data/db", "-a"): [ended, back],
        ("--pod", web[0][:10]): [front],
        ("--namespace", "data"): [back],
        ("--latest",): [ended],
        ("--last", "2"): [ended, back],
        ("--all", "--name", "^mai"): [back, front],
        ("--label", "none"): [],
    }.items():
        assert ids("ps", *options) == wanted, options
    for options, wanted in {
        (): [db[0], web[0]],
        ("--label", "app=front"): [web[0]],
        ("--label", "app"): [web[0]],
        ("--label", "app=back"): [],
        ("--namespace", "data"): [db[0]],
        ("--name", "^d"): [db[0]],
        ("--state", "notready"): [],
    }.items():
        assert ids("pods", *options) == wanted, options
    cri.stop_pod(web[0])
    assert ids("pods", "--state", "notready") == [web[0]]
    assert "NotReady" in out("pods", "--name", "web")


def test_json_is_that_of_crictl(pods: Pods) -> None:
    main_in(pods, pod_of(pods, "web", app="front"))
    for command, theirs in (
        (("ps",), ("ps",)),
        (("pods",), ("pods",)),
        (("images",), ("images",)),
    ):
        done = subprocess.check_output(["crictl", *theirs, "-o", "json"])
        assert listed(*command) == json.loads(done), command


def test_an_ambiguous_or_unknown_name_is_an_error(cri: Cri, pods: Pods) -> None:
    first = main_in(pods, pod_of(pods, "web"))
    second = main_in(pods, pod_of(pods, "web", "data"))
    text = error("inspect", "main")
    assert "ambiguous" in text
    assert first[:13] in text
    assert second[:13] in text
    assert "shop/web/main" in text
    assert "ambiguous" in error("ps", "--pod", "web")
    assert json.loads(out("inspect", "shop/web/main"))["status"]["id"] == first
    assert json.loads(out("inspect", first[:12]))["status"]["id"] == first
    assert "no container 'nothing'" in error("logs", "nothing")
    assert "no pod 'nothing'" in error("ps", "--pod", "nothing")
    assert "regular expression" in error("ps", "--name", "(")
    cri.stop(first)
    assert "does not run" in error("exec", first, "true")
    assert "no command" in error("exec", second, status=2)


def test_of_several_attempts_the_newest_is_meant(cri: Cri, pods: Pods) -> None:
    pod = pod_of(pods, "web")
    made = []
    for attempt in range(2):
        config = container("main", ("sh", "-c", f"echo attempt {attempt}"))
        config.metadata.attempt, config.log_path = attempt, f"{attempt}.log"
        made.append(cri.create(pod[0], config, pod[1]))
        cri.start(made[-1])
        with going("logs", "-f", "web/main") as process:
            assert process.stdout is not None
            assert process.stdout.read() == f"attempt {attempt}\n"  # ends with the container
    assert json.loads(out("inspect", "web/main"))["status"]["id"] == made[1]
    assert out("logs", "--previous", "web/main") == "attempt 0\n"
    cri.remove(made[0])
    assert out("logs", "-p", "web/main") == "attempt 0\n"  # the file is the kubelet's


# --- inspect, images, stats, events ----------------------------------------------------------


def test_inspect_prints_what_crictl_prints(pods: Pods) -> None:
    pod = pod_of(pods, "web")
    container_id = main_in(pods, pod)
    for words, theirs in (
        (("main",), ("inspect", container_id)),
        (("web",), ("inspectp", pod[0])),
        (("--type", "image", BUSYBOX), ("inspecti", BUSYBOX)),
    ):
        own = json.loads(out("inspect", *words))
        known = json.loads(subprocess.check_output(["crictl", *theirs]))
        known_info = known.pop("info")
        for changing in ("timestamp",):
            own["status"].pop(changing, None)
            known["status"].pop(changing, None)
        assert {key: own["status"].keys() for key in ("status",)} == {
            "status": known["status"].keys()
        }
        assert own["status"]["id"] == known["status"]["id"]
        assert own["info"].keys() == known_info.keys()


def test_images_show_names_and_digests() -> None:
    rows = [line.split() for line in lines("images", "--digests")]
    assert rows[0] == ["IMAGE", "TAG", "DIGEST", "IMAGE", "ID", "SIZE"]
    (busybox,) = [row for row in rows if row[0] == BUSYBOX.rpartition(":")[0]]
    assert busybox[1] == BUSYBOX.rpartition(":")[2]
    (shown,) = listed("images", "busybox")["images"]
    assert BUSYBOX in shown["repoTags"]
    assert shown["id"].removeprefix("sha256:").startswith(busybox[3])
    assert lines("images", "-q", "no-such-image") == []


def test_stats_measure_between_two_samples(pods: Pods) -> None:
    pod = pod_of(pods, "web")
    busy = main_in(pods, pod, "while :; do :; done")
    idle = main_in(pods, pod_of(pods, "quiet"))
    found = {one["attributes"]["id"]: one for one in listed("stats")["stats"]}
    assert found.keys() == {busy, idle}
    assert found[busy]["cpu"]["percent"] > 10 * max(found[idle]["cpu"]["percent"], 0.1)
    head, row = lines("stats", "web/main", "--seconds", "0.2")
    assert head.split()[:4] == ["CONTAINER", "NAME", "POD", "CPU"]
    assert row.split()[:3] == [busy[:13], "main", "web"]
    assert float(row.split()[3]) > 5


def test_events_arrive_as_they_happen(cri: Cri, pods: Pods) -> None:
    with going("events", "--namespace", "shop") as text, going("events", "--json") as every:
        assert text.stdout is not None
        assert every.stdout is not None
        _subscribed(cri, pods, every)
        pod = pod_of(pods, "web")
        container_id = main_in(pods, pod, "exit 4")
        seen = [text.stdout.readline().split(maxsplit=3) for _ in range(5)]
        assert [(kind, what) for _, kind, what, _ in seen] == [
            ("pod", "created"),
            ("pod", "started"),
            ("container", "created"),
            ("container", "started"),
            ("container", "stopped"),
        ]
        assert seen[4][3] == f"{container_id[:13]} shop/web main exit code 4 Error\n"


def _subscribed(cri: Cri, pods: Pods, process: subprocess.Popen[str]) -> None:
    """Both subscriptions are there when the metric says so; then one event is seen by the other."""
    until(lambda: value("criagent_event_streams") >= 2, "two subscriptions")
    pod, _ = pod_of(pods, "other", "elsewhere")
    assert process.stdout is not None
    event = json.loads(process.stdout.readline())
    assert event["podSandboxStatus"]["metadata"]["name"] == "other"
    assert event["containerEventType"] == "CONTAINER_CREATED_EVENT"
    cri.remove_pod(pod)


# --- logs ------------------------------------------------------------------------------------


def test_logs_choose_lines_by_number_and_time(cri: Cri, pods: Pods) -> None:
    script = "for n in 1 2 3; do echo line $n; done; echo wrong >&2"
    container_id = main_in(pods, pod_of(pods, "web"), script)
    assert "line 3\n" in _whole(container_id)
    assert out("logs", container_id) == "line 1\nline 2\nline 3\n"
    assert run("logs", container_id).stderr == b"wrong\n"
    assert out("logs", "--tail", "2", container_id) == "line 3\n"  # the last one is of stderr
    assert out("logs", "--tail", "0", container_id) == ""
    assert out("logs", "--since", "1h", container_id) == "line 1\nline 2\nline 3\n"
    assert out("logs", "--since", "2099-01-01T00:00:00Z", container_id) == ""
    stamped = lines("logs", "-t", container_id)
    assert stamped[0].startswith("20")
    assert stamped[0].endswith(" line 1")
    assert "neither a duration" in error("logs", "--since", "soon", container_id, status=2)
    path = Path(cri.status(container_id).log_path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert "cannot be read" in error("logs", container_id)
    path.unlink()


def _whole(container_id: str) -> str:
    with going("logs", "-f", container_id) as process:
        assert process.stdout is not None
        return process.stdout.read()


def test_followed_logs_go_through_a_rotation(cri: Cri, pods: Pods) -> None:
    script = "while read -r line; do echo $line; done"
    container_id = main_in(pods, pod_of(pods, "web"), script, stdin=True)
    path = Path(cri.status(container_id).log_path)
    with going("logs", "-f", container_id) as process:
        assert process.stdout is not None
        _log(path, "before")
        assert process.stdout.readline() == "before\n"
        path.rename(path.with_name("main.log.20260101-000000"))
        _log(path.with_name("main.log.20260101-000000"), "last of the old")
        cri.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container_id))
        _log(path, "first of the new")
        assert process.stdout.readline() == "last of the old\n"
        assert process.stdout.readline() == "first of the new\n"
        cri.stop(container_id)
        assert process.stdout.read() == ""
        assert process.wait(30) == 0


def _log(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"2026-01-01T00:00:00.000000000Z stdout F {text}\n")


def test_a_log_reaches_a_terminal_without_its_escapes(pods: Pods) -> None:
    container_id = main_in(pods, pod_of(pods, "web"), r"printf 'a\033]0;title\007\tb\n'")
    _whole(container_id)
    with OnTerminal([*CRIAGENT, "logs", container_id]) as terminal:
        assert terminal.until("\n") == "a\\x1b]0;title\\x07\tb\r\n"
        assert terminal.status() == 0
    with OnTerminal([*CRIAGENT, "logs", "--raw", container_id]) as terminal:
        assert terminal.until("\n") == "a\x1b]0;title\x07\tb\r\n"
    assert run("logs", container_id).stdout == b"a\x1b]0;title\x07\tb\n"


def test_hostile_names_reach_no_output(pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        config.metadata.name = "evil\x1b[2Jname"

    pods.running(change=change, pod=pod_of(pods, "pod\x1b[31m"))
    for command in (("ps",), ("pods",), ("stats", "--seconds", "0.1"), ("ps", "--json")):
        assert "\x1b" not in out(*command), command
    assert "evil\\x1b[2Jname" in out("ps")
    assert "\x1b" not in error("logs", "no\x1bsuch")


# --- exec ------------------------------------------------------------------------------------


def test_exec_passes_streams_and_the_exit_status(pods: Pods) -> None:
    container_id = main_in(pods, pod_of(pods, "web"))
    done = run("exec", "web/main", "sh", "-c", "echo out; echo wrong >&2; exit 7", status=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"wrong\n")
    data = os.urandom(1 << 20) * 5
    digest = run("exec", "-i", container_id, "sha256sum", stdin=data).stdout.split()[0]
    assert digest.decode() == hashlib.sha256(data).hexdigest()
    assert run("exec", container_id, "--", "cat", stdin=b"not passed").stdout == b""
    assert run("exec", container_id, "sh", "-c", "kill -9 $$", status=137).stdout == b""


def test_exec_on_a_terminal_follows_its_size_and_restores_it(pods: Pods) -> None:
    main_in(pods, pod_of(pods, "web"))
    command = [*CRIAGENT, "exec", "-it", "web/main", "sh", "-c"]
    script = 'trap "stty size" WINCH; stty size; while :; do read -r line && exit 5; done'
    with OnTerminal([*command, script], lines=31, columns=99) as terminal:
        terminal.until("31 99")
        assert not terminal.echoes()
        terminal.resize(40, 120)
        terminal.until("40 120")
        terminal.send("end\r")
        assert terminal.status() == 5
        assert terminal.echoes()


def test_an_agent_that_is_gone_is_status_3() -> None:
    agent.stop()
    for command in (("ps",), ("events",), ("stats",), ("logs", "x"), ("exec", "x", "true")):
        assert "not running" in error(*command, status=3), command


# --- top -------------------------------------------------------------------------------------


def test_top_draws_sorts_follows_the_size_and_ends(pods: Pods) -> None:
    main_in(pods, pod_of(pods, "web"), "while :; do :; done")
    main_in(pods, pod_of(pods, "calm", "data"))
    command = [*CRIAGENT, "top", "--seconds", "0.3"]
    with OnTerminal(command, lines=24, columns=100) as terminal:
        screen = terminal.until("q ends") + terminal.until("data")
        assert "pods: 2 ready of 2" in screen
        assert "containers: 2 running of 2" in screen
        assert screen.index("web") < screen.index("calm")  # the busy one first
        terminal.send("n")
        terminal.until("name")
        terminal.resize(3, 40)  # only the title and the head of the table
        terminal.until("\x1b[H\x1b[2J")
        assert "ready of" in terminal.until("CONTAINER")
        terminal.send("q")
        assert terminal.status() == 0
        assert terminal.echoes()
    assert "needs a terminal" in error("top", status=2)
