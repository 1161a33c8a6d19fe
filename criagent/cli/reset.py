# SPDX-License-Identifier: Apache-2.0
"""Remove everything that the agent made on this node: pods, images, networks, state.

The agent must be stopped. Containers are ended. The configuration in /etc/criagent, the logs and
volumes of pods, and sysctls stay.
"""

from __future__ import annotations

import argparse
import os
import sys

from criagent.cli.common import configuration

EXAMPLES = """examples:
  systemctl disable --now criagent
  criagent reset --dry-run
  criagent reset
  systemctl stop criagent-monitors

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """--dry-run and --yes."""
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be removed, and change nothing"
    )
    command.add_argument("--yes", action="store_true", help="do not ask")


def run(chosen: argparse.Namespace) -> int:
    """Status 1 when something is left or the agent runs, 2 without a confirmation."""
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    if os.geteuid():
        print("run this command as root", file=sys.stderr)
        return 2
    config = loaded[0]
    if not (chosen.dry_run or chosen.yes or _confirmed(str(config.storage.root))):
        return 2
    from criagent.base.errors import AgentError
    from criagent.daemon import reset
    from criagent.telemetry import logs

    logs.setup("error")
    act = reset.plan if chosen.dry_run else reset.reset
    try:
        return act(config, lambda text: print(text, flush=True))
    except (AgentError, OSError) as error:
        after = "" if chosen.dry_run else "\nNothing more was removed."
        print(f"{error}{after}", file=sys.stderr)
        return 1


def _confirmed(root: str) -> bool:
    if not sys.stdin.isatty():
        print("standard input is not a terminal: pass --yes, or --dry-run first", file=sys.stderr)
        return False
    print(f"This ends all pods of this node and deletes {root} with all images.")
    answer = input('Type "reset" to go on: ')
    if answer.strip() != "reset":
        print("nothing was removed", file=sys.stderr)
        return False
    return True
