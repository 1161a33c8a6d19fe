# SPDX-License-Identifier: Apache-2.0
"""A registry for OCI artifacts, which are pushed as their tools push them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.image_builder import digest, put_blob, put_manifest
from tests.support.waiting import until

Json = dict[str, Any]
EMPTY = "application/vnd.oci.empty.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SECCOMP = "application/vnd.cncf.seccomp-profile.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
_CONFIG = """version: 0.1
log: {{level: warn}}
storage: {{inmemory: {{}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class ArtifactRegistry:
    """An empty docker-registry on a port of its own."""

    def __init__(self, host: str) -> None:
        self.host = host

    def push(
        self,
        layers: Sequence[tuple[bytes, Json]],
        repository: str = "artifacts",
        tag: str = "",
        **fields: Any,
    ) -> str:
        """Publish an artifact with an empty configuration, or what `fields` say; its reference."""
        base = f"http://{self.host}/v2/{repository}"
        empty, config = layer(b"{}", kind=EMPTY)
        for content, _ in (*layers, (empty, config)):
            put_blob(base, content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [descriptor for _, descriptor in layers],
            **fields,
        }
        data = json.dumps(manifest).encode()
        put_manifest(base, tag or digest(data), data)
        return f"{self.host}/{repository}@{digest(data)}"

    def profile(self, document: Json | bytes) -> str:
        """Publish a seccomp profile in the form of KEP-6061; its reference."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        _, config = layer(b"{}", kind=SECCOMP)
        return self.push([layer(content)], "profiles", config=config)


def layer(
    content: bytes, title: str = "", kind: str = TAR, **annotations: str
) -> tuple[bytes, Json]:
    """A blob and its descriptor."""
    notes = {**({TITLE: title} if title else {}), **annotations}
    descriptor: Json = {"mediaType": kind, "digest": digest(content), "size": len(content)}
    return content, {**descriptor, **({"annotations": notes} if notes else {})}


@contextlib.contextmanager
def artifact_registry(folder: Path) -> Iterator[ArtifactRegistry]:
    """The registry, for the block."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = folder / "registry.yml"
    config.write_text(_CONFIG.format(port=port))
    with (
        (folder / "registry.log").open("wb") as output,
        subprocess.Popen(["docker-registry", "serve", config], stdout=output, stderr=output) as run,
    ):
        try:
            until(lambda: _listens(port), "the registry")
            yield ArtifactRegistry(f"127.0.0.1:{port}")
        finally:
            run.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
