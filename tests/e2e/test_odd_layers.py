# SPDX-License-Identifier: Apache-2.0
"""Layers of strangers, pulled by the agent: what runs, and what the caller hears."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from criagent.image.documents.digest import parse_digest
from tests.support import image_builder
from tests.support.cri_client import Cri, api
from tests.support.node_state import agent_pid
from tests.support.pods import Pods
from tests.support.unpack_place import CHAR, Member, directory, hard, link, member, tar

pytestmark = pytest.mark.root

Serve = Callable[..., str]
BASE = image_builder.Layer()
BASE.program(Path("/usr/bin/sleep"), "usr/bin/sleep")
BASE.program(Path("/usr/bin/cat"), "usr/bin/cat")
BASE.program(Path("/usr/bin/ls"), "usr/bin/ls")
BASE.symlink("dangling", "no/where")
BASE.file("d/old", b"old")


@pytest.fixture
def serve(cri: Cri) -> Iterator[Serve]:
    """Serves an image of BASE and more layers; returns its name."""
    answers: dict[str, tuple[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = answers.get(self.path, ("", b""))
            self.send_response(200 if kind or self.path == "/v2/" else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    names: list[str] = []

    def put(*layers: bytes) -> str:
        image = image_builder.image([BASE.tar(), *layers], {"Cmd": ["sleep", "1000"]})
        name = f"odd/n{len(names)}"
        kind = str(json.loads(image.manifest)["mediaType"])
        answers[f"/v2/{name}/manifests/1"] = kind, image.manifest
        for digest, content in image.blobs.items():
            answers[f"/v2/{name}/blobs/{digest}"] = "application/octet-stream", content
        names.append(f"127.0.0.1:{server.server_port}/{name}:1")
        return names[-1]

    yield put
    for name in names:
        cri.remove_image(name)
    server.shutdown()
    thread.join()
    server.server_close()


RUNS: dict[str, tuple[list[Member], list[str], str]] = {
    "through a dangling link": (
        [member("dangling/f", b"found")],
        ["cat", "/no/where/f"],
        "found",
    ),
    "through an own dangling link": (
        [link("q", "../../qq"), member("q/f", b"found")],
        ["cat", "/qq/f"],
        "found",
    ),
    "whiteouts of a directory and its child": (
        [member(".wh.d"), member("d/.wh.old")],
        ["ls", "/"],
        "",
    ),
    "ghosts": ([directory("n"), member("n/.wh.ghost"), member("n/f")], ["ls", "/n"], "f\n"),
    "device 0:0 over a hard link": (
        [hard("h", "d/old"), member("d/old", kind=CHAR)],
        ["ls", "/d"],
        "",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_odd_images_run(cri: Cri, pods: Pods, serve: Serve, name: str) -> None:
    members, command, expected = RUNS[name]
    image = serve(tar(*members))
    cri.pull(image)

    def use(config: api.ContainerConfig) -> None:
        config.image.image = image

    container_id = pods.running("sleep", "1000", change=use)
    answer = cri.exec(container_id, *command)
    assert answer.exit_code == 0, answer.stderr
    if command == ["ls", "/"]:
        assert b"d\n" not in answer.stdout.replace(b"old", b"")
    else:
        assert answer.stdout.decode() == expected


def headers_of(*entries: tarfile.TarInfo) -> bytes:
    return b"".join(entry.tobuf(tarfile.GNU_FORMAT) for entry in entries) + bytes(1024)


def test_a_hostile_layer_is_data_loss_and_named(cri: Cri, serve: Serve) -> None:
    root = tarfile.TarInfo("./")
    root.type, root.uid = tarfile.DIRTYPE, 1 << 40
    for layer, text in (
        (tar(directory("x" * 300)), f"entry '{'x' * 200}'…: File name too long"),
        (tar(hard("h", "none")), "entry 'h': a hard link to 'none', which does not exist"),
        (headers_of(root), "entry './': invalid uid 1099511627776"),
        (tar(link("a", "a"), member("a/f")), "entry 'a/f': more than 255 links in one path"),
    ):
        image = serve(layer)
        with pytest.raises(grpc.RpcError) as caught:
            cri.pull(image)
        packed = image_builder.image([layer], {})
        digest = json.loads(packed.manifest)["layers"][0]["digest"]
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert f"layer {parse_digest(digest)}: {text}" in str(caught.value.details())


def resident_kib() -> int:
    status = Path(f"/proc/{agent_pid()}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_lists_of_a_layer_stay_out_of_the_agent(cri: Cri, serve: Serve) -> None:
    """Implied directories whose paths take 10 MB: the agent hears of none."""
    buffer = io.BytesIO()
    above = "/".join(["p" * 200] * 8)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(6000):
            archive.addfile(tarfile.TarInfo(f"{above}/{number}/.wh.f"))
    before = resident_kib()
    cri.pull(serve(buffer.getvalue()))
    assert resident_kib() - before < 10_000
