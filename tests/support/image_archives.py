# SPDX-License-Identifier: Apache-2.0
"""Image archives made by hand, and the `criagent image` command that takes them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.support import image_builder


def command(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`criagent image …`, whatever its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "criagent", "image", *arguments],
        input=data,
        capture_output=True,
        check=False,
    )


def succeed(*arguments: str, data: bytes = b"") -> bytes:
    """Standard output of `criagent image …`, which must end well."""
    done = command(*arguments, data=data)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def archive(layers: list[bytes], tag: str, *others: dict[str, Any], **config: Any) -> bytes:
    """An OCI layout of a made image, with `others` in front of its entry."""
    image = image_builder.image(layers, {"Cmd": ["sleep", "1000"], **config})
    entry = {**image.descriptor, "annotations": {"io.containerd.image.name": tag}}
    index = json.dumps({"manifests": [*others, entry]}).encode()
    members = {"oci-layout": b"{}", "index.json": index}
    blobs = {**image.blobs, image_builder.digest(image.manifest): image.manifest}
    members.update({"blobs/" + name.replace(":", "/"): blob for name, blob in blobs.items()})
    return packed(members)


def packed(members: dict[str, bytes]) -> bytes:
    """A tar of `members`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def small_layer(content: bytes) -> bytes:
    """A layer with `sleep`, `cat` and a file of `content`."""
    layer = image_builder.Layer()
    layer.program(Path("/usr/bin/sleep"), "usr/bin/sleep")
    layer.program(Path("/usr/bin/cat"), "usr/bin/cat")
    layer.file("content", content)
    return layer.tar()
