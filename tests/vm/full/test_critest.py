# SPDX-License-Identifier: Apache-2.0
# vm: limit=7200 programs= seconds=900
"""critest whole, in a random order, where every controller and AppArmor are there.

Nothing but the spec that pins an image of the internet may fail: tests/conformance/expected.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cri_client import Cri
from tests.support.units import systemctl
from tests.vm.suite.test_security import slices

# ginkgo's own limit for the whole is an hour.
LIMIT = "-ginkgo.timeout=1h50m"


@pytest.mark.timeout(7000)
def test_every_spec_passes_that_can(cri: Cri, tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')  # critest calls it; we are root
    sudo.chmod(0o755)
    before, images = slices(), {image.id for image in cri.images()}
    done = subprocess.run(
        ["/src/tests/conformance/run", LIMIT],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}:/usr/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    for name in slices() - before:
        systemctl("stop", name)  # the parent of its pods, which it leaves behind
    for image in cri.images():
        if image.id not in images:
            cri.remove_image(image.id)
    print(done.stdout)
    report = Path("/tmp/critest.json")
    assert report.exists(), done.stdout + done.stderr
    (suite,) = json.loads(report.read_text())
    specs = sorted(suite["SpecReports"], key=lambda spec: spec["RunTime"], reverse=True)
    for spec in specs[:10]:
        print(f"{spec['RunTime'] / 1e9:6.0f} s  {spec['LeafNodeText']}")
    print(f"figure: {done.stdout.splitlines()[0]}; {suite['RunTime'] / 1e9:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr + _failures(specs)


def _failures(specs: list[dict[str, object]]) -> str:
    """What failed specs say, the head of each."""
    failed = [spec for spec in specs if spec["State"] not in {"passed", "skipped"}]
    return "\n".join(json.dumps(spec.get("Failure", ""))[:2000] for spec in failed)
