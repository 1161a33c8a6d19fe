# SPDX-License-Identifier: Apache-2.0
"""Manual pages (man 7 man) from argparse parsers, and from the reference of the configuration."""

from __future__ import annotations

import argparse
import datetime
import os
import re
from collections.abc import Iterator

from criagent.config.text import reference_text
from criagent.version import VERSION

_SEE_ALSO = "criagent(1), criagent-config(5), crictl(1), kubelet(1)"
_ROW = re.compile(r"^\| `([^`]+)` \| (.*?) \| (.*) \|$")
_NONE = (None, argparse.SUPPRESS)


def command_page(command: argparse.ArgumentParser, name: str) -> str:
    """The page `name`(1) of a command."""
    first, *rest = (command.description or "").strip().split("\n\n")
    summary = first.replace("\n", " ").partition(". ")[0].rstrip(".")
    lines = [_head(name, 1), ".SH NAME", f"{escaped(name)} \\- {escaped(summary)}"]
    lines += [".SH SYNOPSIS", ".nf", escaped(usage(command)), ".fi", ".SH DESCRIPTION"]
    for paragraph in (first, *rest):
        lines += [".PP", escaped(paragraph)]
    lines += _commands(command)
    lines += [".SH OPTIONS", *_options(command)]
    epilog = (command.epilog or "").strip()
    for paragraph in epilog.split("\n\n"):
        title, _, text = paragraph.partition(":")
        lines += [f".SH {escaped(title.strip().upper())}"]
        literal = "\n  " in paragraph
        lines += [".nf", escaped(text.strip("\n")), ".fi"] if literal else [escaped(text.strip())]
    return "\n".join([*lines, ".SH SEE ALSO", escaped(_SEE_ALSO), ""])


def configuration_page() -> str:
    """The page criagent-config(5)."""
    lines = [_head("criagent-config", 5), ".SH NAME"]
    lines += ["criagent-config \\- configuration of the Kubernetes node agent criagent"]
    lines += [".SH SYNOPSIS", "/etc/criagent/config.toml", ".br", "/etc/criagent/config.d/*.toml"]
    lines += [".SH DESCRIPTION"]
    for line in reference_text().splitlines():
        if row := _ROW.match(line):
            key, default, text = (re.sub(r"[`\\]", "", part) for part in row.groups())
            lines += [".TP", f".B {escaped(key)}", escaped(text)]
            lines += [f"Default: {escaped(default)}."]
        elif line.startswith("## "):
            lines += [f".SH {escaped(line.removeprefix('## '))}"]
        elif not line.startswith(("#", "|", "<!--")):
            lines.append(escaped(line.replace("`", "")) if line else ".PP")
    return "\n".join([*lines, ".SH SEE ALSO", escaped(_SEE_ALSO), ""])


def escaped(text: str) -> str:
    """Text that groff sets as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti").replace("`", "\\(ga")
    return re.sub(r"^(?=\.)", r"\\&", text, flags=re.MULTILINE)


def usage(command: argparse.ArgumentParser) -> str:
    """The usage without colours and its heading."""
    return command.format_usage().removeprefix("usage: ").rstrip()


def _head(name: str, section: int) -> str:
    seconds = int(os.environ["SOURCE_DATE_EPOCH"])
    date = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    return f'.TH {escaped(name).upper()} {section} {date} "criagent {VERSION}" criagent\n.ad l\n.nh'


def _commands(command: argparse.ArgumentParser) -> Iterator[str]:
    """The commands, or the actions of a command with their options."""
    for action in command._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        yield ".SH COMMANDS"
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, inner in action.choices.items():
            yield from (".TP", f".B {escaped(name)}", escaped(helps.get(name, "")))
            if action.dest == "command":
                yield f"See criagent\\-{escaped(name)}(1)."
                continue
            yield from (".RS", ".nf", escaped(usage(inner)), ".fi", *_options(inner), ".RE")


def _options(command: argparse.ArgumentParser) -> Iterator[str]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help in _NONE:
            continue
        value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
        names = ", ".join(action.option_strings)
        shown = " ".join(part for part in (names, str(value)) if part)
        yield from (".TP", f".B {escaped(shown)}", escaped((action.help or "") % vars(action)))
