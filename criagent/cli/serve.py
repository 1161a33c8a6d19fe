# SPDX-License-Identifier: Apache-2.0
"""Run the agent until SIGTERM. Containers keep running when it ends."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from criagent.cli.common import config_path
from criagent.config.load import ConfigError, load
from criagent.config.sections import Config


def arguments(command: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Status 2 for a wrong configuration, 1 when the agent cannot start."""
    from criagent.telemetry import logs

    try:
        config = _with_socket(chosen, load(config_path(chosen)))
    except ConfigError as error:
        return _refused(error, chosen.log_level)
    from criagent.daemon import serve as daemon

    logs.setup(chosen.log_level)
    logs.set_level(config.telemetry.log_level)
    logs.take_uncaught()
    return daemon.serve(config, lambda: _with_socket(chosen, load(config_path(chosen))))


def _refused(error: ConfigError, log_level: str) -> int:
    """Every problem: in the journal an error of the agent, elsewhere a line each."""
    import structlog

    from criagent.telemetry import logs

    if logs.to_journal():
        logs.setup(log_level)
        log = structlog.get_logger(__name__)
        log.error("not_started", error="; ".join(error.problems))
    else:
        for problem in error.problems:
            print(problem, file=sys.stderr)
    return 2


def _with_socket(chosen: argparse.Namespace, config: Config) -> Config:
    if chosen.socket is None:
        return config
    socket = Path(chosen.socket.removeprefix("unix://")).absolute()
    storage = dataclasses.replace(config.storage, socket=socket)
    return dataclasses.replace(config, storage=storage)
