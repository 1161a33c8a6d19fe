"""The command line from outside: statuses, output, and what is left behind when a call fails."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from criagent._proto import admin_pb2, admin_pb2_grpc, api_pb2, api_pb2_grpc
from criagent.cli.main import COMMANDS, main
from criagent.cli.progress import Bar, size_text
from criagent.config.load import DEFAULT_PATH
from criagent.config.text import default_text
from criagent.version import VERSION

ROOT = Path(__file__).parents[2]


class Agent(
    admin_pb2_grpc.AdminServicer,
    api_pb2_grpc.ImageServiceServicer,
    api_pb2_grpc.RuntimeServiceServicer,
):
    """An agent with two images and one finding; `failing` = the status that every call ends in."""

    def __init__(self) -> None:
        self.failing: grpc.StatusCode | None = None
        self.fails_after = 0  # chunks of an export before it fails
        self.imported = b""
        self.repaired = False
        self.removed: list[str] = []
        self.hangs_from_the_pull_on: threading.Event | None = None
        self._hanging = False

    def _judge(self, context: Any) -> None:
        if self.failing is not None:
            context.abort(self.failing, "the fake says no")

    def Info(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        facts = {"version": "1", "network": {"ready": True}, "handlers": [{"name": "crun"}]}
        return admin_pb2.InfoResponse(json=json.dumps(facts))

    def ImportImages(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        self.imported = b"".join(message.chunk for message in request_iterator)
        return admin_pb2.ImportImagesResponse(
            images=[
                admin_pb2.ImportedImage(id="sha256:1", tags=["a:1", "a:2"], digests=["a@sha256:d"])
            ]
        )

    def ExportImages(self, request: Any, context: Any) -> Any:  # noqa: N802
        for _ in range(self.fails_after):
            yield admin_pb2.ExportImagesResponse(chunk=b"part")
        self._judge(context)
        yield admin_pb2.ExportImagesResponse(chunk="+".join(request.images).encode())

    def TagImage(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        return admin_pb2.TagImageResponse(id="sha256:1", tags=[request.image, request.tag])

    def PullImage(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        if self.hangs_from_the_pull_on is not None:
            self._hanging = True
            self.hangs_from_the_pull_on.wait()
        return api_pb2.PullImageResponse(image_ref="sha256:" + "a" * 64)

    def Version(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self._hanging and self.hangs_from_the_pull_on is not None:
            self.hangs_from_the_pull_on.wait()
        return api_pb2.VersionResponse(runtime_name="criagent")

    def RemoveImageName(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        if request.image == "none":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such image")
        self.removed.append(request.image)
        gone = "sha256:1" if len(self.removed) > 1 else ""
        return admin_pb2.RemoveImageNameResponse(names=[request.image], removed_id=gone)

    def Fsck(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        self.repaired |= request.repair
        finding = admin_pb2.Finding(object="blob 1", problem="torn", repaired=request.repair)
        return admin_pb2.FsckResponse(findings=[finding])

    def Prune(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        return admin_pb2.PruneResponse(freed_bytes=2_500_000, blobs=2, snapshots=1)

    def ListImages(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._judge(context)
        return api_pb2.ListImagesResponse(
            images=[
                api_pb2.Image(id="sha256:" + "b" * 64, size=1234),
                api_pb2.Image(id="sha256:" + "a" * 64, repo_tags=["a:1"], size=5, pinned=True),
            ]
        )


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def call(agent: Agent, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Run the command line against the fake agent."""
    socket = tmp_path / "agent.sock"
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        admin_pb2_grpc.add_AdminServicer_to_server(agent, server)
        api_pb2_grpc.add_ImageServiceServicer_to_server(agent, server)
        api_pb2_grpc.add_RuntimeServiceServicer_to_server(agent, server)
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        try:
            yield lambda *words: main(["--socket", str(socket), *words])
        finally:
            server.stop(None).wait()


def run(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    command = [sys.executable, "-m", "criagent", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=env, **kwargs
    )


def status(*words: str) -> int:
    """The exit status, when the grammar itself ends the process too."""
    try:
        return main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


# --- grammar ---------------------------------------------------------------------------------


def test_version_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys; from criagent.cli.main import main; main(['version']); "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("criagent ")
    slow = (
        "grpc",
        "google",
        "msgspec",
        "structlog",
        "aiohttp",
        "opentelemetry",
        "prometheus_client",
    )
    for name in slow:
        assert f"'{name}'" not in done.stdout, name


def test_help_tells_statuses_commands_and_the_default_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert str(DEFAULT_PATH) in text
    for part in (*COMMANDS, "0 success", "1 failure", "2 wrong usage", "3 the agent"):
        assert part in text, part


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(command, "--help") == 0
    assert "exit status" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["image"],
        ["image", "export", "x"],
        ["image", "ls", "--output", "xml"],
        ["config"],
        ["completion", "tcsh"],
        ["--log-level", "loud", "version"],
        ["--conf", "x", "version"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*words) == 2
    assert "usage: criagent" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_is_told(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(word) == 0
    assert capsys.readouterr().out == f"criagent {VERSION}\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "criagent", "config", "default"],
            stdout=closed, stderr=subprocess.PIPE, check=False, cwd=ROOT,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"")


# --- configuration ---------------------------------------------------------------------------


def test_config_default_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "default"]) == 0
    text = capsys.readouterr().out
    assert text == default_text()
    (tmp_path / "c.toml").write_text(text)
    assert main(["--config", str(tmp_path / "c.toml"), "config", "check"]) == 0


def test_a_wrong_configuration_is_status_2_where_it_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[network]\nmtu = 3\nbrigde = 1\n[nowhere]\n")
    for argv in (["config", "check"], ["config", "show"], ["serve"]):
        assert status("--config", str(file), *argv) == 2
        error = capsys.readouterr().err
        assert all(key in error for key in ("network.mtu", "network.brigde", "[nowhere]"))
        assert error.count(str(file)) == 3


def test_a_wrong_configuration_does_not_hide_the_running_agent(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[storage]\nsocket = "{tmp_path}/agent.sock"\n[nowhere]\n')
    assert status("--config", str(file), "image", "ls", "-q") == 0
    assert "a:1" in capsys.readouterr().out


# --- the running agent -----------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["info"], ["image", "ls"], ["image", "prune"]])
def test_without_an_agent_the_status_is_3(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--socket", str(tmp_path / "none"), *argv]) == 3
    error = capsys.readouterr().err
    assert "the agent is not running" in error
    assert "systemctl start criagent" in error
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    assert main(["--socket", str(tmp_path / "stale"), *argv]) == 3
    assert "nothing answers" in capsys.readouterr().err


def test_an_agent_that_hangs_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("criagent.cli.agent._ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "hanging"))
        hanging.listen()
        assert main(["--socket", str(tmp_path / "hanging"), "image", "ls"]) == 3
    assert "has not answered" in capsys.readouterr().err


def test_an_agent_that_begins_to_hang_ends_a_long_call(
    call: Callable[..., int],
    agent: Agent,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("criagent.cli.agent._ANSWER_S", 0.2)
    agent.hangs_from_the_pull_on = threading.Event()
    try:
        assert call("image", "pull", "a:1") == 3
    finally:
        agent.hangs_from_the_pull_on.set()
    assert "has not answered" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "unix://", "unix:"])
@pytest.mark.parametrize("place", ["before", "after", "last", "environment"])
def test_the_socket_is_named_as_crictl_does(
    call: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    place: str,
) -> None:
    option = ["--socket", f"{prefix}{tmp_path}/agent.sock"]
    if place == "environment":
        monkeypatch.setenv("CONTAINER_RUNTIME_ENDPOINT", option[1])
        option = []
    argv = {
        "before": [*option, "image", "ls"],
        "after": ["image", *option, "ls"],
        "last": ["image", "ls", *option],
        "environment": ["image", "ls"],
    }[place]
    assert main(argv) == 0


def test_closed_standard_output_is_no_traceback(tmp_path: Path) -> None:
    script = f"{sys.executable} -m criagent version >&-"
    command = ["sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "standard output is closed\n")


def test_an_interrupt_at_the_start_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("criagent.cli.main.parser", interrupted)
    assert main(["version"]) == 130


def test_info(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info") == 0
    assert "Ready: True" in capsys.readouterr().out
    assert call("info", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == "1"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(grpc.StatusCode.UNAVAILABLE, 3), (grpc.StatusCode.NOT_FOUND, 1)],
)
@pytest.mark.parametrize(
    "words", [["info"], ["image", "ls"], ["image", "fsck"], ["image", "export", "OUT", "x"]]
)
def test_a_refused_call_prints_its_reason(
    call: Callable[..., int],
    agent: Agent,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    code: grpc.StatusCode,
    expected: int,
) -> None:
    agent.failing = code
    assert call(*[str(tmp_path / "out") if word == "OUT" else word for word in words]) == expected
    assert "the fake says no" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_image_ls(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("image", "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["IMAGE", "<none>", "a:1"]
    assert call("image", "ls", "--output", "json") == 0
    tagged = json.loads(capsys.readouterr().out)[1]
    assert (tagged["tags"], tagged["size"], tagged["pinned"]) == (["a:1"], 5, True)


def test_image_ls_quiet_prints_names_alone(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("image", "ls", "--quiet") == 0
    assert capsys.readouterr().out == "sha256:" + "b" * 64 + "\na:1\n"


def test_image_tag_pull_and_rm(
    call: Callable[..., int], agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("image", "tag", "a:1", "b:2") == 0
    assert call("image", "pull", "a:1") == 0
    assert capsys.readouterr().out == "a:1 b:2\nsha256:" + "a" * 64 + "\n"
    assert call("image", "rm", "a:1", "none", "b:2") == 1
    assert agent.removed == ["a:1", "b:2"]
    printed = capsys.readouterr()
    assert printed.out == "untagged a:1\nuntagged b:2\nremoved sha256:1\n"
    assert printed.err == "none is not on this node\n"


def test_import_sends_the_whole_file(
    call: Callable[..., int], agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom((2 << 20) + 17)
    (tmp_path / "a.tar").write_bytes(content)
    assert call("image", "import", str(tmp_path / "a.tar")) == 0
    assert agent.imported == content
    assert capsys.readouterr().out == "a:1 a:2\n"
    assert call("image", "import", str(tmp_path / "a.tar"), "--output", "json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"id": "sha256:1", "tags": ["a:1", "a:2"], "digests": ["a@sha256:d"]}
    ]


def test_import_reads_standard_input(
    call: Callable[..., int], agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SimpleNamespace(buffer=io.BytesIO(b"archive"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", source)
    assert call("image", "import", "-") == 0
    assert agent.imported == b"archive"


@pytest.mark.parametrize("name", ["missing.tar", "."])
def test_import_of_what_cannot_be_read_is_status_1(
    call: Callable[..., int], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("image", "import", str(tmp_path / name)) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "stream"), [(["import", "-"], "stdin"), (["export", "-", "x"], "stdout")]
)
def test_an_archive_is_nothing_for_a_terminal(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, words: list[str], stream: str
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, stream, terminal)
    assert call("image", *words) == 2


def test_export_writes_one_complete_file(call: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "real.tar").write_text("old")
    (tmp_path / "link.tar").symlink_to("real.tar")
    assert call("image", "export", str(tmp_path / "link.tar"), "a", "b") == 0
    assert (tmp_path / "real.tar").read_text() == "a+b"
    assert (tmp_path / "link.tar").is_symlink()


def test_a_failed_export_leaves_the_old_file_and_nothing_else(
    call: Callable[..., int], agent: Agent, tmp_path: Path
) -> None:
    agent.failing, agent.fails_after = grpc.StatusCode.INTERNAL, 3
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "x.tar").write_text("old")
    assert call("image", "export", str(directory / "x.tar"), "a") == 1
    assert [(p.name, p.read_text()) for p in directory.iterdir()] == [("x.tar", "old")]


def test_export_to_a_pipe_or_device_does_not_replace_it(
    call: Callable[..., int], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert call("image", "export", str(pipe), "a") == 0
        assert os.read(reader, 10) == b"a"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_export_to_standard_output(
    call: Callable[..., int], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert call("image", "export", "-", "a") == 0
    assert capfdbinary.readouterr().out == b"a"


def test_fsck_is_status_1_until_it_repairs(
    call: Callable[..., int], agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("image", "fsck") == 1
    assert capsys.readouterr().out == "blob 1: torn\n"
    assert call("image", "fsck", "--repair", "--output", "json") == 0
    assert agent.repaired
    assert json.loads(capsys.readouterr().out)[0]["repaired"] is True


def test_prune(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("image", "prune") == 0
    assert capsys.readouterr().out == "freed 2.5MB: 2 blobs, 1 snapshots\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.23MB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar("import", 2000) as bar:
        bar.moved(1000)
        bar.moved(1000)
    assert ("2kB of 2kB" in stream.getvalue() and "100%" in stream.getvalue()) == terminal
    assert bool(stream.getvalue()) == terminal


# --- doctor ----------------------------------------------------------------------------------


def test_doctor_tells_each_wrong_key_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[network]\nmtu = 3\nbrigde = 1\n")
    assert main(["--config", str(file), "doctor", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)
    wrong = [entry for entry in findings if entry["name"] == "configuration"]
    assert [entry["level"] for entry in wrong] == ["error", "error"]
    assert {"kernel", "openat2"} <= {entry["name"] for entry in findings}
    assert all(entry["cure"] for entry in findings if entry["level"] == "error")


def test_doctor_text_has_a_cure_for_each_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[runtime]\nconmon = "{tmp_path}/none"\n')
    assert main(["--config", str(file), "doctor"]) == 2
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if f"{tmp_path}/none" in line]
    assert lines[at].startswith("error")
    assert lines[at + 1].strip().startswith("cure: install conmon")


# --- completion ------------------------------------------------------------------------------


def complete(*words: str) -> list[str]:
    script = (
        'source <(printf %s "$SCRIPT"); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_criagent; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "SCRIPT": run("completion", "bash").stdout}
    done = subprocess.run(
        ["bash", "-c", script, "bash", "criagent", *words],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    return done.stdout.split("\n")[:-1]


def test_bash_completes_commands_actions_and_files(tmp_path: Path) -> None:
    assert set(COMMANDS) < set(complete(""))
    assert complete("im") == ["image"]
    assert complete("image", "f") == ["fsck"]
    assert complete("image", "fsck", "--r") == ["--repair"]
    assert complete("completion", "z") == ["zsh"]
    (tmp_path / "two words.tar").touch()
    assert complete("image", "import", f"{tmp_path}/t") == [f"{tmp_path}/two words.tar"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_with_every_command(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
