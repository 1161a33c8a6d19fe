# SPDX-License-Identifier: Apache-2.0
"""What a release rests on: one version, in the program and at the top of the changelog."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from criagent.version import VERSION

TOP = Path(__file__).parents[2]
_PARTS = {"Upgrade notes", "Security", "Added", "Changed", "Deprecated", "Fixed", "Removed"}


def test_the_changelog_begins_with_this_version() -> None:
    text = (TOP / "CHANGELOG.md").read_text()
    first = re.search(r"^## (\S+) \((not yet released|\d{4}-\d\d-\d\d)\)$", text, re.MULTILINE)
    assert first is not None
    assert first[1] == VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    newest = text[first.end() :].partition("\n## ")[0]
    assert set(re.findall(r"^### (.*)$", newest, re.MULTILINE)) <= _PARTS


def test_the_install_steps_name_this_version() -> None:
    assert f"criagent_{VERSION}_amd64.deb" in (TOP / "README.md").read_text()
    page = (TOP / "docs/install.md").read_text()
    assert f"criagent-{VERSION}-1.x86_64.rpm" in page
    assert f"criagent-node-{VERSION}_x86_64.oci.tar" in page


def test_the_daemonset_has_the_image_of_this_version() -> None:
    document = yaml.safe_load((TOP / "deploy/daemonset.yaml").read_text())
    pod = document["spec"]["template"]["spec"]
    (install,) = pod["containers"]
    assert install["image"] == f"docker.io/criagent/node:{VERSION}"
    assert install["securityContext"]["privileged"]
    assert pod["hostPID"]
    assert pod["volumes"] == [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}]
