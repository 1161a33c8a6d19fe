# SPDX-License-Identifier: Apache-2.0
"""Print, check or migrate the configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.cli.common import config_path, configuration, output_argument, show
from criagent.config.text import default_text, effective_text

if TYPE_CHECKING:
    from criagent.config.migrate.migration import Migration

KINDS = ("containerd", "crio", "docker", "registries", "storage")

EXAMPLES = """examples:
  criagent config default > /etc/criagent/config.toml
  criagent --config new.toml config check
  criagent config migrate /etc/containerd/config.toml --write /etc/criagent

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """One sub-command for each action."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("default", help="print every key with its default")
    actions.add_parser("show", help="print the values in force and their files")
    actions.add_parser("check", help="print problems only")
    migrate = actions.add_parser(
        "migrate",
        help="make a configuration out of that of containerd, CRI-O or Docker",
        description="Read the configuration of containerd, CRI-O, Docker, containers-registries "
        "or containers-storage, print the same for criagent, and every key that has no "
        "counterpart. Nothing is written without --write.",
    )
    migrate.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="files to read (default: those of this node in their usual places)",
    )
    migrate.add_argument(
        "--kind", choices=KINDS, default="", help="what the files are (default: by their content)"
    )
    migrate.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write the files below this directory, such as /etc/criagent; files that are there "
        "with another content stay, and nothing is written",
    )
    migrate.add_argument("--all", action="store_true", help="list keys that need nothing as well")
    output_argument(migrate)


def run(chosen: argparse.Namespace) -> int:
    """Status 2 when a configuration has problems, each printed with its file and key."""
    if chosen.action == "default":
        sys.stdout.write(default_text())
        return 0
    if chosen.action == "migrate":
        return _migrate(chosen)
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    if chosen.action == "show":
        sys.stdout.write(effective_text(*loaded))
        return 0
    missing = "" if config_path(chosen).exists() else "does not exist, so the defaults apply; "
    print(f"{config_path(chosen)}: {missing}no problem found")
    return 0


def _migrate(chosen: argparse.Namespace) -> int:
    from criagent.config.migrate.output import outputs, write
    from criagent.config.migrate.sources import DEFAULT_FILES, SourceError, migrated

    files = chosen.files or [file for file in DEFAULT_FILES if file.exists()]
    if not files:
        names = ", ".join(map(str, DEFAULT_FILES))
        print(f"nothing to migrate: the node has no {names}; name the file", file=sys.stderr)
        return 2
    try:
        migration = migrated(files, chosen.kind)
        texts = outputs(migration)
        written = write(texts, chosen.write) if chosen.write else []
    except SourceError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; nothing was written", file=sys.stderr)
        return 1
    if chosen.output == "json":
        show(_document(migration, texts))
        return 0
    if chosen.write:
        for path in written:
            print(f"wrote {path}")
    else:
        for name, text in texts.items():
            print(f"# ---- {name}\n{text}")
    _report(migration, everything=chosen.all)
    return 0


def _document(migration: Migration, texts: dict[str, str]) -> dict[str, object]:
    return {
        "files": texts,
        "keys": [
            {
                "file": str(finding.where.file),
                "key": finding.where.key,
                "verdict": finding.verdict,
                "text": finding.text,
            }
            for finding in migration.findings
        ],
    }


def _report(migration: Migration, *, everything: bool) -> None:
    """Comments, so that the whole output is still TOML."""
    from criagent.config.migrate.migration import Verdict

    left = list(migration.of(Verdict.LEFT))
    print(f"# {len(left)} without a counterpart:" if left else "# Every key was taken.")
    for finding in left:
        print(f"#   {finding.where}: {finding.text}")
    others = [*migration.of(Verdict.UNNEEDED), *migration.of(Verdict.DEFAULT)]
    if not everything:
        print(f"# {len(others)} keys need nothing; --all lists them.")
        return
    print(f"# {len(others)} keys need nothing:")
    for finding in others:
        print(f"#   {finding.where}: {finding.text or 'not set, or the default there'}")
