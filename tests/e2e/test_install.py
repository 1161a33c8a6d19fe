# SPDX-License-Identifier: Apache-2.0
"""criagent from its wheel in a virtual environment of its own, without the checkout."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.version import VERSION
from tests.support import wheel
from tests.support.cri_client import Cri, api

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command."""
    directory = tmp_path_factory.mktemp("install")
    environment = directory / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", environment], check=True)
    command: list[str | Path] = [
        environment / "bin" / "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--quiet",
    ]
    subprocess.run([*command, wheel.build(directory)], check=True)
    wheel.lend_dependencies(environment)
    return environment / "bin" / "criagent"


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process with nothing of the checkout in its surroundings."""
    return subprocess.run(
        [program, *words],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip


def test_commands_run_outside_of_the_checkout(program: Path) -> None:
    assert run(program, "version").stdout == f"criagent {VERSION}\n"
    default = run(program, "config", "default")
    assert default.stdout == (wheel.SOURCE / "deploy" / "config.toml").read_text()
    assert {finding["name"] for finding in json.loads(run(program, "doctor", "--json").stdout)} > {
        "kernel",
        "cgroups",
        "conmon",
    }
    for shell in ("bash", "zsh", "fish"):
        assert "doctor" in run(program, "completion", shell).stdout


@pytest.fixture
def serving(program: Path, tmp_path: Path) -> Iterator[Path]:
    """The socket of an installed agent beside the node's own, with directories of its own."""
    file, place = tmp_path / "config.toml", tmp_path / "run" / "agent.sock"
    file.write_text(
        f'[storage]\nroot = "{tmp_path}/root"\nrun_dir = "{tmp_path}/run"\nsocket = "{place}"\n'
        '[telemetry]\nmetrics_address = ""\n[runtime]\nmissing_controllers = "ignore"\n'
        '[network]\nbackend = "cni"\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(tmp_path / "ready"))
        agent = subprocess.Popen(
            [program, "--config", file, "serve"],
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": str(tmp_path / "ready")},
        )
        assert select.select([ready, os.pidfd_open(agent.pid)], [], [], 30)[0] == [ready]  # type: ignore[type-var]
        assert b"READY=1" in ready.recv(4096)
    yield place
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == 0


def test_the_installed_agent_serves(serving: Path, program: Path) -> None:
    cri = Cri(f"unix://{serving}")
    version = cri.runtime.Version(api.VersionRequest())
    assert (version.runtime_name, version.runtime_version) == ("criagent", VERSION)
    assert cri.images() == []
    cri.close()
    info = run(program, "--socket", str(serving), "info", "--json")
    assert json.loads(info.stdout)["version"] == VERSION
