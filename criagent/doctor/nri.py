# SPDX-License-Identifier: Apache-2.0
"""Whether this agent can serve NRI plugins, or another runtime does."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, content, fine, warning

_OWN = "criagent"


@dataclass(frozen=True, slots=True, kw_only=True)
class NriFacts:
    """The command line of the process that serves the socket, "" = none does."""

    server: str = ""


def read(config: Config) -> NriFacts:
    """Connect to the socket; its server sees a connection that ends at once."""
    form = struct.Struct("3i")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1.0)
        with contextlib.suppress(OSError):
            trial.connect(os.fspath(config.nri.socket_path))
            found = trial.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
            pid, _, _ = form.unpack(found)
            command = content(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            return NriFacts(server=command or f"process {pid}")
    return NriFacts()


def judge(facts: NriFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    section = config.nri
    if section.disable or section.disable_connections or not facts.server:
        return
    if _OWN in facts.server:
        yield fine("NRI", f"plugins connect to {section.socket_path}")
        return
    program = Path(facts.server.split()[0]).name
    yield warning(
        "NRI",
        f"{program} serves NRI plugins on {section.socket_path}, so none can connect to criagent",
        f"stop NRI in {program}, or set nri.socket_path to another path, or nri.disable = true",
    )
