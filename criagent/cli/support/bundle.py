# SPDX-License-Identifier: Apache-2.0
"""Write an archive for others to look at: configuration, doctor, state, log and kernel facts.

Credentials are removed. Names of pods, images and registries and addresses of the node are in it.
An agent that does not run is no failure.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import os
import sys
import tarfile
from pathlib import Path

from criagent.cli.support.collect import members, unreadable_time

EXAMPLES = """examples:
  criagent support-bundle
  criagent support-bundle --file /root/node.tar.gz --since '3 days ago'

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """Where to, and how much of the journal."""
    command.add_argument(
        "--file", type=Path, metavar="FILE", help="archive to write; must not exist yet"
    )
    command.add_argument(
        "--since",
        default="24 hours ago",
        metavar="TIME",
        help="where the journal begins, as journalctl reads it (default: 24 hours ago)",
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 1 when the archive cannot be written, 2 when --since is no time."""
    if said := unreadable_time(chosen.since):
        print(f"--since: {said}; write '2 hours ago' or '2026-11-28 17:00'", file=sys.stderr)
        return 2
    at = dt.datetime.now(dt.UTC)
    name = f"criagent-support-{os.uname().nodename}-{at:%Y%m%dT%H%M%SZ}"
    path: Path = chosen.file or Path(f"{name}.tar.gz")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        print(f"{path}: {error.strerror}; name another with --file", file=sys.stderr)
        return 1
    try:
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for member in members(chosen):
                data = member.text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{name}/{member.name}")
                entry.size, entry.mtime, entry.mode = len(data), int(at.timestamp()), 0o600
                archive.addfile(entry, io.BytesIO(data))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    print(path)
    return 0
