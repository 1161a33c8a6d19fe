# SPDX-License-Identifier: Apache-2.0
"""CRIU, which OCI runtimes call: whether it works on this node, its options, its errors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

IMAGES: Final = "checkpoint"  # the directory of its images in an archive
_OPTIONS = (
    # With its rules left in place by a crash a pod would be cut off. The processes stand still
    # meanwhile, and a restored pod has another address, so that its connections end anyway.
    "network-lock skip\n"
)
_TAIL = 256 << 10
_ERROR = re.compile(r"^\([\d.]+\)\s+(?:\d+: )?Error \(\S+\): (.*)$", re.MULTILINE)
_USELESS = re.compile(r"^Dumping FAILED|^rlimit: |^Dump \w+ .*failed with")
_CURES = (
    (
        re.compile(r"sockets: Can't get 1:(16|34) opt: Operation not supported"),
        "this CRIU cannot save TCP and UDP sockets on this kernel; install CRIU 4.2 or newer",
    ),
)


def write_options(home: Path) -> None:
    """Write the options that OCI runtimes do not pass on; synchronous, idempotent."""
    directory = home / ".criu"
    for one in (home, directory):
        one.mkdir(exist_ok=True, mode=0o700)
    (directory / "default.conf").write_text(_OPTIONS)


def last_errors(log: Path) -> str:
    """The errors at the end of CRIU's log, with a cure if one is known; "" = none. Synchronous."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    found = [line for line in _ERROR.findall(text) if not _USELESS.search(line)]
    said = "; ".join(dict.fromkeys(found[-3:]))
    cure = next((cure for sign, cure in _CURES if sign.search(said)), "")
    return f"{said}; {cure}" if cure else said
