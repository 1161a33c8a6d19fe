# SPDX-License-Identifier: Apache-2.0
"""`criagent storage info` against the node's own figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cri_client import Cri
from tests.support.image_archives import archive, small_layer, succeed

pytestmark = pytest.mark.root

ROOT = Path("/var/lib/criagent/snapshots")
TAGS = [f"registry.test/info:{n}" for n in (1, 2)]


def info(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "criagent", "storage", "info", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_file_system_is_the_one_that_holds_the_layers(cri: Cri) -> None:
    document: dict[str, Any] = json.loads(info("--output", "json"))
    assert (document["driver"], document["root"], document["problem"]) == (
        "overlay",
        str(ROOT),
        "",
    )
    size, place = os.statvfs(ROOT), document["file_system"]
    assert place["total_bytes"] == size.f_blocks * size.f_frsize
    assert place["inodes"] == size.f_files
    assert os.stat(place["mountpoint"]).st_dev == ROOT.stat().st_dev
    assert place["d_type"] is True
    assert document["capabilities"]["shared_page_cache"] is True


def test_images_that_share_a_layer_have_the_rest_for_themselves(cri: Cri) -> None:
    common = small_layer(b"common" * 1000)
    for tag, own in zip(TAGS, (b"a" * 50_000, b"b" * 90_000), strict=True):
        succeed("import", "-", data=archive([common, small_layer(own)], tag))
    try:
        document = json.loads(info("--output", "json"))
        found = {image["names"][0]: image for image in document["images"] if image["names"]}
        first, second = (found[tag] for tag in TAGS)
        assert first["layers"] == second["layers"] == 2
        assert first["shared_bytes"] == second["shared_bytes"] > 0
        assert second["unique_bytes"] - first["unique_bytes"] >= 36_864
        for image in (first, second):
            assert image["unpacked_bytes"] == image["shared_bytes"] + image["unique_bytes"]
            assert image["blob_bytes"] > 0
        text = info()
        assert TAGS[0] in text
        assert "Driver: overlay\n" in text
    finally:
        for tag in TAGS:
            cri.remove_image(tag)
        succeed("prune")
