# SPDX-License-Identifier: Apache-2.0
"""Run the agent until SIGTERM. Containers keep running when it ends."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from criagent.cli.common import configuration


def arguments(command: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Status 2 for a wrong configuration, 1 when the agent cannot start."""
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    config = loaded[0]
    if chosen.socket is not None:
        socket = Path(chosen.socket.removeprefix("unix://")).absolute()
        storage = dataclasses.replace(config.storage, socket=socket)
        config = dataclasses.replace(config, storage=storage)
    from criagent.daemon import serve as daemon
    from criagent.telemetry import logs

    logs.setup(chosen.log_level)
    return daemon.serve(config)
