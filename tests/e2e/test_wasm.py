# SPDX-License-Identifier: Apache-2.0
"""WebAssembly by crun (libwasmedge0): by the handler's type, and by the name crun-wasm."""

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

PRINTS, TRAPS = "registry.test/wasm:prints", "registry.test/wasm:traps"
CONFIGS = {
    "by its type": '[runtime.handlers.wasm]\npath = "/usr/bin/crun"\ntype = "wasm"\n',
    "by its name": '[runtime.handlers.wasm]\npath = "/usr/bin/crun-wasm"\n',
}


@pytest.fixture(params=list(CONFIGS))
def wasm(cri: Cri, request: pytest.FixtureRequest) -> Iterator[Cri]:
    """An agent with the handler, and images whose programs are modules."""
    agent.stop()
    client = agent.start(CONFIGS[request.param])
    for tag, status in ((PRINTS, 7), (TRAPS, None)):
        layer = Layer()
        layer.file("hello.wasm", printing("hello from wasm\n", status))
        succeed("import", "-", data=archive([layer.tar()], tag, Cmd=["/hello.wasm"]))
    yield client
    for tag in (PRINTS, TRAPS):
        client.remove_image(tag)
    client.close()
    agent.stop()
    shutil.rmtree("/run/criagent/runtime/wasm")  # with what the program caches there
    agent.start().close()


@pytest.mark.parametrize(("tag", "succeeds"), [(PRINTS, True), (TRAPS, False)])
def test_a_module_prints_and_ends(wasm: Cri, tmp_path: Path, tag: str, succeeds: bool) -> None:
    """crun loses the status of proc_exit (docs/handlers.md): a trap alone is told."""
    config = Pods(wasm, tmp_path, "wasm").config()
    pod = wasm.run(config, handler="wasm")
    wanted = container("hello", ())
    wanted.image.image, wanted.log_path = tag, "hello.log"
    container_id = wasm.create(pod, wanted, config)
    wasm.start(container_id)
    until(lambda: wasm.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    assert "stdout F hello from wasm\n" in (tmp_path / "hello.log").read_text()
    assert succeeds or wasm.status(container_id).exit_code != 0
    wasm.remove_pod(pod)
