# SPDX-License-Identifier: Apache-2.0
"""Files of a package that the program itself knows: manual pages, completion, copyright.

`generate.py TREE` runs in the build root with the Python of the packages, after the program and its
dependencies are in TREE.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

TREE = Path(sys.argv[1])
LIBRARY = TREE / "usr/lib/criagent"
sys.path.insert(0, str(LIBRARY))

import copyrights  # noqa: E402
import manual  # noqa: E402

from criagent.cli import completion  # noqa: E402
from criagent.cli.main import parser  # noqa: E402

_COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/criagent",
    "zsh": "usr/share/zsh/vendor-completions/_criagent",
    "fish": "usr/share/fish/vendor_completions.d/criagent.fish",
}


def main() -> None:
    """Write them all."""
    pages = TREE / "usr/share/man"
    top = parser()
    write(pages / "man1/criagent.1", manual.command_page(top, "criagent"))
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                page = manual.command_page(command, f"criagent-{name}")
                write(pages / f"man1/criagent-{name}.1", page)
    write(pages / "man5/criagent-config.5", manual.configuration_page())
    for shell, path in _COMPLETIONS.items():
        with contextlib.redirect_stdout(io.StringIO()) as out:
            completion.run(argparse.Namespace(shell=shell))
        head = "#compdef criagent\n" if shell == "zsh" else ""
        write(TREE / path, head + out.getvalue())
    write(TREE / "usr/share/doc/criagent/copyright", copyrights.text(LIBRARY))


def write(path: Path, text: str) -> None:
    """The file, with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
