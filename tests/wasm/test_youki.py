# SPDX-License-Identifier: Apache-2.0
"""WebAssembly by youki with wasmtime, which keeps the status of a module; crun loses it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.image_archives import archive, succeed
from tests.support.image_builder import Layer
from tests.support.pods import Pods
from tests.support.waiting import until
from tests.support.wasm import printing

pytestmark = pytest.mark.root

CONFIG = '[runtime.handlers.wasm]\npath = "/opt/kubernetes/youki"\ntype = "wasm"\n'
CODES = (7, 0)


@pytest.fixture
def wasm(cri: Cri) -> Iterator[Cri]:
    """An agent with the handler, and images whose programs are modules."""
    agent.stop()
    client = agent.start(CONFIG)
    for status in (*CODES, None):
        layer = Layer()
        layer.file("hello.wasm", printing("hello from wasm\n", status))
        succeed("import", "-", data=archive([layer.tar()], tag(status), Cmd=["/hello.wasm"]))
    yield client
    for status in (*CODES, None):
        client.remove_image(tag(status))
    client.close()
    agent.stop()
    shutil.rmtree("/run/criagent/runtime/wasm")
    agent.start().close()


def tag(status: int | None) -> str:
    return f"registry.test/wasm:{'traps' if status is None else status}"


def exited(wasm: Cri, folder: Path, status: int | None) -> int:
    """The exit code of the container whose module ends so; it has printed its line."""
    config = Pods(wasm, folder, "wasm").config()
    pod = wasm.run(config, handler="wasm")
    wanted = container("hello", ())
    wanted.image.image, wanted.log_path = tag(status), "hello.log"
    container_id = wasm.create(pod, wanted, config)
    wasm.start(container_id)
    until(lambda: wasm.status(container_id).state == api.CONTAINER_EXITED, "the exit", 60)
    assert "stdout F hello from wasm\n" in (folder / "hello.log").read_text()
    code = wasm.status(container_id).exit_code
    wasm.remove_pod(pod)
    return code


@pytest.mark.parametrize("status", CODES)
def test_a_module_prints_and_its_status_arrives(wasm: Cri, tmp_path: Path, status: int) -> None:
    assert exited(wasm, tmp_path, status) == status


def test_a_trap_is_no_success(wasm: Cri, tmp_path: Path) -> None:
    assert exited(wasm, tmp_path, None) != 0
