# SPDX-License-Identifier: Apache-2.0
"""Commands that call the running agent: statuses, output, files."""

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

import grpc
import pytest

from criagent._proto import admin_pb2_grpc, api_pb2_grpc
from criagent.cli.main import main
from criagent.cli.progress import Bar
from tests.support.cli_agent import ROOT, Agent


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


def test_a_pull_shows_how_far_it_is_on_a_terminal(
    call: Callable[..., int], agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.hangs_from_the_pull_on = threading.Event()
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    assert call("image", "pull", "a:1") == 0
    assert set(agent.asked_for) == {"a:1"}
    assert "pulled 3MB of 12MB [=======                       ] 25%" in terminal.getvalue()


def test_a_narrow_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    with Bar("pulled", 0) as bar:
        bar.at(3_000_000, 12_000_000)
    lines = terminal.getvalue().replace("\033[K", "").replace("\n", "").split("\r")
    assert max(map(len, lines)) <= 30


def test_an_export_into_nowhere_names_its_file(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target, reason in (
        (tmp_path / "no/such/x.tar", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        assert call("image", "export", str(target), "a") == 1
        assert capsys.readouterr().err == f"{target}: {reason}\n"


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
