# SPDX-License-Identifier: Apache-2.0
"""Every subcommand of crictl once, against what it must print."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cri_client import BUSYBOX, Cri
from tests.support.cri_client import pod as cri_pod
from tests.support.waiting import until

pytestmark = pytest.mark.root

PAUSE = "registry.k8s.io/pause:3.9"
TRANSPORTS = pytest.mark.parametrize("transport", ["spdy", "websocket"])
CLEARED_SCREEN = "\x1b[2J\x1b[H"  # of `stats`, also where there is no screen
ECHO = 'while read -r line; do echo "$line"; done'


def crictl(*words: str, status: int = 0, stdin: str = "") -> str:
    """Standard output of a crictl command that must end with `status`; else its words of error."""
    done = subprocess.run(
        ["crictl", *words], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def told(*words: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(crictl(*words))


def table(*words: str) -> list[dict[str, str]]:
    """The rows of a printed table by the names of its columns."""
    head, *container_ids = crictl(*words).removeprefix(CLEARED_SCREEN).splitlines()
    columns = [(found.start(), found.group().strip()) for found in re.finditer(r"\S+( \S+)*", head)]
    ends = [start for start, _ in columns[1:]] + [10_000]
    return [
        {
            name: container_id[start:end].strip()
            for (start, name), end in zip(columns, ends, strict=True)
        }
        for container_id in container_ids
    ]


class Pod:
    """A pod and a container made by crictl from files."""

    def __init__(self, directory: Path) -> None:
        self.pod_file = directory / "pod.json"
        self.container_file = directory / "container.json"
        self.logs = directory / "logs"
        self.logs.mkdir()
        self._pod = {
            "metadata": {"name": "shown", "uid": "shown-uid", "namespace": "crictl", "attempt": 2},
            "hostname": "shown-host",
            "log_directory": str(self.logs),
            "labels": {"colour": "blue"},
            "annotations": {"note": "of the pod"},
            "linux": {},
        }
        self._container: dict[str, Any] = {
            "metadata": {"name": "main", "attempt": 1},
            "image": {"image": BUSYBOX},
            "command": ["sleep", "100000"],
            "log_path": "main.log",
            "labels": {"colour": "green"},
            "annotations": {"note": "of the container"},
            "linux": {},
        }
        self.write()
        self.sandbox = ""
        self.container_id = ""

    def write(self, **container: Any) -> None:
        self.pod_file.write_text(json.dumps(self._pod))
        self.container_file.write_text(json.dumps({**self._container, **container}))

    def start(self, **container: Any) -> None:
        self.write(**container)
        self.sandbox = crictl("runp", str(self.pod_file)).strip()
        files = (str(self.container_file), str(self.pod_file))
        self.container_id = crictl("create", self.sandbox, *files).strip()
        assert crictl("start", self.container_id) == f"{self.container_id}\n"


@pytest.fixture
def pod(cri: Cri, tmp_path: Path) -> Pod:
    """Files of a pod that is not there yet."""
    assert cri.pods() == []
    return Pod(tmp_path)


def test_every_subcommand_is_in_this_file() -> None:
    text = crictl("--help").partition("COMMANDS:")[2].partition("GLOBAL OPTIONS:")[0]
    offered = set(re.findall(r"^   ([a-z-]+)", text, re.MULTILINE)) - {"help"}
    used = set(
        re.findall(r'(?:crictl|told|table|client)\(\s*"([a-z-]+)"', Path(__file__).read_text())
    )
    assert offered - used == set()


def test_a_pod_and_a_container_from_their_making_to_their_end(pod: Pod) -> None:
    sandbox = crictl("runp", str(pod.pod_file)).strip()
    assert re.fullmatch(r"[0-9a-f]{64}", sandbox)
    (shown,) = table("pods")
    assert shown["POD ID"] == sandbox[:13]
    assert (shown["STATE"], shown["NAME"], shown["NAMESPACE"]) == ("Ready", "shown", "crictl")
    assert (shown["ATTEMPT"], shown["RUNTIME"]) == ("2", "(default)")
    status = told("inspectp", sandbox)["status"]
    assert status["metadata"]["uid"] == "shown-uid"
    assert (status["state"], status["labels"]) == ("SANDBOX_READY", {"colour": "blue"})
    assert status["network"]["ip"].startswith("10.88.")

    container_id = crictl("create", sandbox, str(pod.container_file), str(pod.pod_file)).strip()
    (shown,) = table("ps", "-a")
    assert (shown["CONTAINER"], shown["POD ID"]) == (container_id[:13], sandbox[:13])
    assert (shown["STATE"], shown["NAME"], shown["ATTEMPT"]) == ("Created", "main", "1")
    assert table("ps") == []
    assert crictl("start", container_id) == f"{container_id}\n"
    assert [found["STATE"] for found in table("ps")] == ["Running"]
    found = told("inspect", container_id)
    assert (found["status"]["state"], found["status"]["id"]) == ("CONTAINER_RUNNING", container_id)
    assert found["status"]["logPath"] == str(pod.logs / "main.log")
    assert found["info"]["pid"] > 0
    assert found["info"]["runtimeSpec"]["process"]["args"] == ["sleep", "100000"]

    assert crictl("stop", container_id) == f"{container_id}\n"
    assert [shown["STATE"] for shown in table("ps", "-a")] == ["Exited"]
    assert "not running" in crictl("exec", "-s", container_id, "true", status=1)
    assert crictl("rm", container_id) == f"{container_id}\n"
    assert table("ps", "-a") == []
    assert "not found" in crictl("inspect", container_id, status=1)
    assert crictl("stopp", sandbox) == f"Stopped sandbox {sandbox}\n"
    assert [shown["STATE"] for shown in table("pods")] == ["NotReady"]
    assert crictl("rmp", sandbox) == f"Removed sandbox {sandbox}\n"
    assert table("pods") == []


def test_run_makes_pod_and_container_at_once(pod: Pod) -> None:
    container_id = crictl("run", str(pod.container_file), str(pod.pod_file)).strip()
    (shown,) = table("ps")
    assert (shown["CONTAINER"], shown["STATE"]) == (container_id[:13], "Running")
    assert "is running" in crictl("rm", container_id, status=1)
    assert (
        crictl("rm", "-f", container_id) == f"{container_id}\n{container_id}\n"
    )  # of its stop and of its removal
    sandbox = table("pods", "--no-trunc")[0]["POD ID"]
    assert crictl("rmp", "-af") == f"Stopped sandbox {sandbox}\nRemoved sandbox {sandbox}\n"


@TRANSPORTS
def test_exec_streams(pod: Pod, transport: str) -> None:
    pod.start()
    words = ("--transport", transport, pod.container_id, "hostname")
    assert crictl("exec", *words) == "shown-host\n"
    assert (
        crictl("exec", "-i", "--transport", transport, pod.container_id, "cat", stdin="a\nb")
        == "a\nb"
    )
    assert "exit code 7" in crictl("exec", *words[:3], "sh", "-c", "exit 7", status=1)


def test_exec_answers_at_once(pod: Pod) -> None:
    pod.start()
    assert (
        crictl("exec", "-s", pod.container_id, "sh", "-c", "echo out; echo err >&2")
        == "out\n\nerr\n\n"
    )
    assert "exited with 3" in crictl("exec", "-s", pod.container_id, "sh", "-c", "exit 3", status=1)
    assert "timed out" in crictl(
        "exec", "-s", "--timeout", "1", pod.container_id, "sleep", "9", status=1
    )


@contextmanager
def client(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A crictl command that goes on; killed at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["crictl", *words], stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def lines(process: subprocess.Popen[str], number: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(number)]


@TRANSPORTS
def test_attach_shows_and_feeds(pod: Pod, transport: str) -> None:
    pod.start(command=["sh", "-c", ECHO], stdin=True)
    with client("attach", "-i", "--transport", transport, pod.container_id) as attached:
        assert attached.stdin is not None
        attached.stdin.write("one\ntwo\n")
        attached.stdin.flush()
        assert lines(attached, 2) == ["one", "two"]
    assert crictl("logs", pod.container_id) == "one\ntwo\n"


@TRANSPORTS
def test_port_forward_reaches_the_pod(pod: Pod, transport: str) -> None:
    page = "echo It works > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    pod.start(command=["sh", "-c", page])
    # crictl gives up at the first connection that is refused.
    until(
        lambda: ":8080" in crictl("exec", "-s", pod.container_id, "netstat", "-ltn"), "the server"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    with client("port-forward", "--transport", transport, pod.sandbox, f"{local}:8080") as forward:
        assert lines(forward, 1) == [f"Forwarding from 127.0.0.1:{local} -> 8080"]
        until(lambda: _page(local) == b"It works\n", "the page")


def _page(port: int) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


def test_logs_are_shown_whole_in_part_and_by_stream(pod: Pod) -> None:
    pod.start(command=["sh", "-c", "seq 1 5; echo wrong >&2"])
    until(lambda: table("ps", "-a")[0]["STATE"] == "Exited", "the exit")
    done = subprocess.run(
        ["crictl", "logs", pod.container_id], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n2\n3\n4\n5\n", "wrong\n")
    assert crictl("logs", "--stream", "stdout", pod.container_id) == "1\n2\n3\n4\n5\n"
    assert crictl("logs", "--limit-bytes", "4", pod.container_id) == "1\n2\n"
    assert crictl("logs", "--since", "2100-01-01T00:00:00Z", pod.container_id) == ""
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) 1"
    assert re.match(stamp, crictl("logs", "-t", pod.container_id))


def test_logs_are_followed_over_a_rotation(pod: Pod) -> None:
    pod.start(command=["sh", "-c", ECHO], stdin=True)
    log = pod.logs / "main.log"
    with (
        client("attach", "-i", pod.container_id) as attached,
        client("logs", "-f", pod.container_id) as follower,
    ):
        for part in range(4):
            words = [f"{part}-{number}" for number in range(50)]
            assert attached.stdin is not None
            attached.stdin.write("".join(f"{word}\n" for word in words))
            attached.stdin.flush()
            assert lines(follower, 50) == words
            log.rename(f"{log}.{part}")
            crictl("logs", "--reopen", "--tail", "0", pod.container_id)
            assert log.exists()
        crictl("stop", pod.container_id)
        assert follower.wait(timeout=30) == 0
    assert [len(Path(f"{log}.{part}").read_text().splitlines()) for part in range(4)] == [50] * 4


def test_images_come_show_themselves_and_go(cri: Cri) -> None:
    assert PAUSE not in crictl("images")
    assert crictl("pull", PAUSE).startswith("Image is up to date for sha256:")
    (shown,) = [
        container_id
        for container_id in table("images")
        if container_id["IMAGE"] == "registry.k8s.io/pause"
    ]
    assert shown["TAG"] == "3.9"
    (image,) = told("images", "-o", "json", PAUSE)["images"]
    assert image["id"].startswith(f"sha256:{shown['IMAGE ID']}")
    found = told("inspecti", PAUSE)
    assert (found["status"]["repoTags"], found["status"]["id"]) == ([PAUSE], image["id"])
    assert int(found["status"]["size"]) > 0
    (system,) = told("imagefsinfo")["status"]["imageFilesystems"]
    assert int(system["usedBytes"]["value"]) > 0
    assert Path(system["fsId"]["mountpoint"]).is_dir()
    assert crictl("rmi", PAUSE) == f"Deleted: {PAUSE}\n"
    assert "no such image" in crictl("inspecti", PAUSE, status=1)
    assert "not found" in crictl("pull", "registry.k8s.io/no/such:image", status=1)
    assert PAUSE not in [tag for one in cri.images() for tag in one.repo_tags]


def test_statistics_are_shown(pod: Pod) -> None:
    pod.start(command=["sh", "-c", "while :; do :; done"])
    (container_id,) = table("stats")
    assert (container_id["CONTAINER"], container_id["NAME"]) == (pod.container_id[:13], "main")
    assert float(container_id["CPU %"]) > 0
    (stats,) = told("stats", "-o", "json", pod.container_id)["stats"]
    assert stats["attributes"]["labels"] == {"colour": "green"}
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    (one,) = told("statsp", "-o", "json")["stats"]
    assert one["attributes"]["metadata"]["name"] == "shown"
    assert [found["attributes"]["id"] for found in one["linux"]["containers"]] == [pod.container_id]
    assert one["linux"]["network"]["defaultInterface"]["name"] == "eth0"


def test_metrics_are_described_and_shown(pod: Pod) -> None:
    pod.start()
    described = {one["name"]: one["labelKeys"] for one in told("metricdescs")["descriptors"]}
    assert len(described) >= 45
    assert all(keys for keys in described.values())
    (one,) = told("metricsp")["podMetrics"]
    assert one["podSandboxId"] == pod.sandbox
    (container_id,) = one["containerMetrics"]
    assert container_id["containerId"] == pod.container_id
    shown = [*one["metrics"], *container_id["metrics"]]
    assert "container_cpu_usage_seconds_total" in {metric["name"] for metric in shown}
    for metric in shown:
        assert len(metric["labelValues"]) == len(described[metric["name"]])


def test_update_changes_the_resources_that_are_told(pod: Pod) -> None:
    pod.start()
    assert crictl("update", "--cpu-share", "512", pod.container_id) == f"{pod.container_id}\n"
    assert told("inspect", pod.container_id)["status"]["resources"]["linux"]["cpuShares"] == "512"
    assert "not found" in crictl("update", "--cpu-share", "512", "f" * 64, status=1)


def test_a_checkpoint_is_written_once(pod: Pod, tmp_path: Path) -> None:
    # Not sleep, which ends when CRIU interrupts it.
    pod.start(command=["sh", "-c", "while :; do sleep 0.05; done"])
    export = f"--export={tmp_path}/out.tar"
    assert pod.container_id in crictl("checkpoint", export, pod.container_id)
    assert tarfile.is_tarfile(tmp_path / "out.tar")
    assert "AlreadyExists" in crictl("checkpoint", export, pod.container_id, status=1)


def _subscribed(cri: Cri, follower: subprocess.Popen[str]) -> None:
    """Make a pod until `follower` tells of it, and read on to its end."""
    assert follower.stdout is not None
    heard = False
    while not heard:
        sandbox = cri.run(cri_pod("mark"))
        heard = bool(select.select([follower.stdout], [], [], 0.1)[0])
        cri.remove_pod(sandbox)
    while lines(follower, 1) != [f"{sandbox} CONTAINER_DELETED_EVENT"]:  # type: ignore[possibly-undefined]
        pass


def test_events_are_told_in_order(cri: Cri, pod: Pod) -> None:
    template = "{{.containerId}} {{.containerEventType}}"
    with client("events", "-o", "go-template", "--template", template) as follower:
        _subscribed(cri, follower)
        pod.start()
        crictl("stop", pod.container_id)
        crictl("rm", pod.container_id)
        crictl("rmp", "-f", pod.sandbox)
        kinds = ["CREATED", "STARTED", "STOPPED", "DELETED"]
        expected = [f"{pod.sandbox} CONTAINER_{kind}_EVENT" for kind in kinds[:2]]
        expected += [f"{pod.container_id} CONTAINER_{kind}_EVENT" for kind in kinds]
        expected += [f"{pod.sandbox} CONTAINER_{kind}_EVENT" for kind in kinds[2:]]
        assert lines(follower, len(expected)) == expected


def test_the_agent_tells_of_itself() -> None:
    version = crictl("version")
    assert "RuntimeName:  criagent\n" in version
    assert "RuntimeApiVersion:  v1\n" in version
    found = told("info")
    assert {one["type"]: one["status"] for one in found["status"]["conditions"]} == {
        "RuntimeReady": True,
        "NetworkReady": True,
        "RuntimeHandlersSecure": False,  # Debian 13's crun and runc
    }
    assert {one.get("name", "") for one in found["runtimeHandlers"]} == {"", "crun", "runc"}
    assert crictl("runtime-config").split() == ["cgroup", "driver:", "CGROUPFS"]
    assert crictl("update-runtime-config", "--pod-cidr", "10.88.0.0/16,fd00:10:88::/64") == ""
    assert "10.0.0.0/33" in crictl("update-runtime-config", "--pod-cidr", "10.0.0.0/33", status=1)


def test_crictl_needs_no_agent_for_its_own_settings(tmp_path: Path) -> None:
    file = tmp_path / "crictl.yaml"
    file.write_text("runtime-endpoint: unix:///run/criagent/criagent.sock\n")
    assert crictl("-c", str(file), "config", "--set", "timeout=7") == ""
    assert crictl("-c", str(file), "config", "--get", "timeout") == "7\n"
    assert crictl("config", "--get", "runtime-endpoint").startswith("unix:///run/criagent/")
    assert "complete -F" in crictl("completion", "bash")
