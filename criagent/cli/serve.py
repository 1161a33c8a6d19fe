# SPDX-License-Identifier: Apache-2.0
"""Run the agent until SIGTERM. Containers keep running when it ends."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from criagent.cli.common import config_path, configuration
from criagent.config.load import load
from criagent.config.sections import Config


def arguments(command: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Status 2 for a wrong configuration, 1 when the agent cannot start."""
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    from criagent.daemon import serve as daemon
    from criagent.telemetry import logs

    config = _with_socket(chosen, loaded[0])
    logs.setup(chosen.log_level)
    logs.set_level(config.telemetry.log_level)
    return daemon.serve(config, lambda: _with_socket(chosen, load(config_path(chosen))))


def _with_socket(chosen: argparse.Namespace, config: Config) -> Config:
    if chosen.socket is None:
        return config
    socket = Path(chosen.socket.removeprefix("unix://")).absolute()
    storage = dataclasses.replace(config.storage, socket=socket)
    return dataclasses.replace(config, storage=storage)
