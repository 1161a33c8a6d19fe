# SPDX-License-Identifier: Apache-2.0
"""Files of tests/storage inside a test of the VM, in a session of pytest of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest


def passes(
    chosen: str, files: Sequence[str], capsys: pytest.CaptureFixture[str], **environment: str
) -> str:
    """Run the tests named `chosen`, such as a driver, of the files `tests/storage/test_NAME.py`.

    Returns what they printed, which is in the log at once, and prints a figure. Fails when one of
    them does. `environment` is for STORAGE_DRIVERS and its neighbours.
    """
    names = [f"tests/storage/test_{name}.py" for name in files]
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as scratch:
        # A directory of its own: the clean-up of the other session would find mounts there.
        options = ["-v", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=1800"]
        options += ["--durations=10", "--durations-min=20"]
        command = [sys.executable, "-m", "pytest", *options, f"--basetemp={Path(scratch) / 'tmp'}"]
        with subprocess.Popen(
            [*command, *names, "-k", chosen],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            told = []
            for line in process.stdout:
                told.append(line)
                with capsys.disabled():
                    print(line, end="", flush=True)
    output = "".join(told)
    assert process.returncode == 0, f"pytest ended with {process.returncode}: see above"
    passed = re.findall(r"(\d+) passed", output)
    print(f"figure: {chosen}: {passed[-1]} cases of {', '.join(files)} passed")
    return output
