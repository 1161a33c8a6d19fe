# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the agent for the command line, and the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc

from criagent._proto import admin_pb2, admin_pb2_grpc, api_pb2, api_pb2_grpc
from criagent.cli.main import main

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
        self.asked_for: list[str] = []
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

    def PullProgress(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The second question finds the pull done."""
        self.asked_for.append(request.image)
        if len(self.asked_for) > 1 and self.hangs_from_the_pull_on is not None:
            self.hangs_from_the_pull_on.set()
        return admin_pb2.PullProgressResponse(received_bytes=3_000_000, expected_bytes=12_000_000)

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
