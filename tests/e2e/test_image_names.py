# SPDX-License-Identifier: Apache-2.0
"""Names of images, taken one by one."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.cri_client import Cri

pytestmark = pytest.mark.root
PAUSE = "registry.k8s.io/pause:3.9"
REPOSITORY = PAUSE.rpartition(":")[0]


def criagent(*argv: str) -> subprocess.CompletedProcess[str]:
    command = ["python3", "-m", "criagent", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def names(cri: Cri, image_id: str) -> tuple[set[str], set[str]]:
    """Tags and repositories of digests of the image."""
    for image in cri.images():
        if image.id == image_id:
            return set(image.repo_tags), {d.partition("@")[0] for d in image.repo_digests}
    return set(), set()


def test_a_name_goes_and_the_image_stays_until_its_last_tag(cri: Cri) -> None:
    image_id = cri.pull(PAUSE)
    try:
        for name in (f"{REPOSITORY}:more", "example.test/other:1"):
            assert criagent("image", "tag", PAUSE, name).returncode == 0
        done = criagent("image", "rm", "example.test/other:1")
        assert (done.returncode, done.stdout) == (0, "untagged example.test/other:1\n")
        assert names(cri, image_id) == ({PAUSE, f"{REPOSITORY}:more"}, {REPOSITORY})
        assert criagent("image", "rm", PAUSE).stdout == f"untagged {PAUSE}\n"
        assert names(cri, image_id) == ({f"{REPOSITORY}:more"}, {REPOSITORY})
        last = criagent("image", "rm", f"{REPOSITORY}:more")
        assert last.stdout.splitlines()[-1] == f"removed {image_id}"
        gone = criagent("image", "rm", PAUSE)
        assert (gone.returncode, gone.stderr) == (1, f"{PAUSE} is not on this node\n")
    finally:
        cri.remove_image(image_id)


def test_an_id_stands_for_all_names(cri: Cri) -> None:
    image_id = cri.pull(PAUSE)
    try:
        criagent("image", "tag", PAUSE, "example.test/other:1")
        done = criagent("image", "rm", image_id)
        assert {f"untagged {PAUSE}", f"removed {image_id}"} < set(done.stdout.splitlines())
        assert names(cri, image_id) == (set(), set())
    finally:
        cri.remove_image(image_id)


def test_info_shows_both_conditions(cri: Cri) -> None:
    text = criagent("info").stdout
    assert "type RuntimeReady, status True" in text
    assert "type NetworkReady, status True" in text
