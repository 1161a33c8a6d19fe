"""Run the agent until SIGTERM. Containers keep running when it ends."""

from __future__ import annotations

import argparse
import dataclasses

from criagent.cli.common import configuration


def arguments(command: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Status 2 for a wrong configuration, 1 when it cannot start."""
    config = configuration(chosen)
    if config is None:
        return 2
    if chosen.socket is not None:
        storage = dataclasses.replace(config.storage, socket=chosen.socket.absolute())
        config = dataclasses.replace(config, storage=storage)
    from criagent import daemon, logs

    logs.setup(chosen.log_level)
    return daemon.serve(config)
