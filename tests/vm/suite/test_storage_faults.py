# SPDX-License-Identifier: Apache-2.0
# vm: limit=7200 programs=zfs-modules.tar seconds=2400
"""Full pools, SIGKILL at every crash point and damaged stores, with devmapper and zfs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

SUITE = [f"tests/storage/test_{name}.py" for name in ("space", "crashes", "bad_stores")]
FEWER = {"STORAGE_LAYERS": "40", "STORAGE_CONTAINERS": "40"}  # the machine is slow


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_the_faults_of_the_storage_suite(driver: str) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "timeout=1800", *SUITE, "-k", driver],
        env={**os.environ, **FEWER, "STORAGE_DRIVERS": driver},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    passed = re.findall(r"(\d+) passed", done.stdout)
    print(f"figure: {driver}: {passed[-1]} cases passed")
