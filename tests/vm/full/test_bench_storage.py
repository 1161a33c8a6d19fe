# SPDX-License-Identifier: Apache-2.0
# vm: limit=7200 programs=zfs-modules.tar seconds=2400
"""Figures of all storage drivers in one machine: devmapper and zfs run here only, so the others are
measured beside them. The machine is emulated: take ratios between drivers, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import Cri
from tests.support.units import systemctl

_DROP_IN = Path("/etc/criagent/config.d/bench.toml")


@pytest.fixture
def service() -> Iterator[None]:
    """The service has its own configuration again after the test."""
    yield
    _DROP_IN.unlink(missing_ok=True)
    systemctl("start", "criagent")


@pytest.mark.usefixtures("service")
@pytest.mark.timeout(7000)
def test_figures_of_the_storage_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    scale = os.environ.get("BENCH_SCALE", "0.1")
    drivers = os.environ.get("STORAGE_DRIVERS", "overlay native devmapper zfs")
    with capsys.disabled():
        subprocess.run(
            [sys.executable, "-m", "tests.vm.full.test_bench_storage"],
            env={**os.environ, "BENCH_SCALE": scale, "STORAGE_DRIVERS": drivers},
            check=True,
        )


def start(config: str) -> Cri:
    """The service, with that configuration."""
    _DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    _DROP_IN.write_text(config)
    systemctl("start", "criagent")
    return Cri()


def stop() -> None:
    """End it, and let its containers be: the bench has removed them."""
    with contextlib.suppress(FileNotFoundError):
        _DROP_IN.unlink()
    systemctl("stop", "criagent")


if __name__ == "__main__":
    from tests.bench import storage

    storage.measure(start, stop)
