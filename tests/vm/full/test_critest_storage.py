# SPDX-License-Identifier: Apache-2.0
# vm: memory=6144 limit=14400 programs=zfs-modules.tar seconds=3200
"""critest whole on the storage drivers of this kernel alone; the others: make critest-storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cri_client import Cri
from tests.support.storage_node import service_on
from tests.vm.full import test_critest


@pytest.mark.timeout(7000)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_every_spec_passes_that_can(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRIAGENT_STORAGE", driver)  # for the title
    with service_on(driver, 3 << 30):
        cri = Cri()
        test_critest.test_every_spec_passes_that_can(cri, tmp_path)
        for pod in cri.pods():
            cri.remove_pod(pod.id)
        cri.close()
