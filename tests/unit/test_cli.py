# SPDX-License-Identifier: Apache-2.0
"""The command line from outside: statuses, output, and what is left behind when a call fails."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from criagent import version
from criagent._proto import admin_pb2_grpc, api_pb2_grpc
from criagent.cli.main import COMMANDS, main
from criagent.cli.progress import Bar, size_text
from criagent.config.load import DEFAULT_PATH
from criagent.config.text import default_text
from criagent.version import VERSION
from tests.support.cli_agent import ROOT, Agent, run, status


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
        ["ps", "--label", "=web"],
        ["--log-level", "loud", "version"],
        ["--conf", "x", "version"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*words) == 2
    assert "usage: criagent" in capsys.readouterr().err


def test_a_build_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "commit").write_text("0123456789ab\n")
    monkeypatch.setattr(version, "__file__", str(tmp_path / "version.py"))
    assert version.described() == f"{VERSION} (0123456789ab)"


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


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (["ps", "--foo"], "criagent ps"),
        (["image", "pull", "--foo", "r.test/a"], "criagent image pull"),
        (["--foo", "version"], "criagent version"),
    ],
)
def test_an_unknown_option_shows_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str], argv: list[str], usage: str
) -> None:
    assert status(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: {usage} [-h]")
    assert error.endswith(f"{usage}: error: unrecognized arguments: --foo\n")


def test_the_log_level_is_in_the_help_where_it_has_an_effect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (status("serve", "--help"), status("ps", "--help")) == (0, 0)
    assert capsys.readouterr().out.count("log level of serve") == 1


def test_a_file_in_place_of_the_socket_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert status("--socket", str(file), "ps") == 3
    error = capsys.readouterr().err
    assert error == f"{file} is not a socket; name the agent's with --socket\n"


def test_a_check_of_no_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = tmp_path / "config.toml"
    monkeypatch.setattr("criagent.cli.common.DEFAULT_PATH", default)
    monkeypatch.setattr("criagent.config.load.DEFAULT_PATH", default)
    assert status("config", "check") == 0
    wanted = f"{default}: does not exist, so the defaults apply; no problem found\n"
    assert capsys.readouterr().out == wanted


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


@functools.cache
def bash_script() -> str:
    return run("completion", "bash").stdout


def complete(*words: str) -> list[str]:
    script = (
        'source <(printf %s "$SCRIPT"); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_criagent; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "SCRIPT": bash_script()}
    done = subprocess.run(
        ["bash", "-c", script, "bash", "criagent", *words],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    return done.stdout.split("\n")[:-1]


def test_bash_completes_commands_actions_and_files(tmp_path: Path) -> None:
    assert set(COMMANDS) < set(complete(""))
    assert complete("im") == ["image", "images"]
    assert complete("image", "f") == ["fsck"]
    assert complete("image", "fsck", "--r") == ["--repair"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("ps", "--state", "ru") == ["running"]
    assert complete("info", "--output", "") == ["text", "json"]
    assert complete("serve", "--log-level", "w") == ["warning"]
    assert complete("logs", "--pre") == ["--previous"]
    (tmp_path / "two words.tar").touch()
    assert complete("image", "import", f"{tmp_path}/t") == [f"{tmp_path}/two words.tar"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_with_every_command(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
