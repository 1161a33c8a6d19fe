# SPDX-License-Identifier: Apache-2.0
"""Print a completion script for a shell, for example: source <(criagent completion bash)"""

from __future__ import annotations

import argparse
import sys

_BASH = """_criagent() {{
    local words="{own}" at word="${{COMP_WORDS[COMP_CWORD]}}"
    for at in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $at in
{cases}
        esac
    done
    case ${{COMP_WORDS[COMP_CWORD-1]}} in
{values}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [ ${{#COMPREPLY[@]}} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}}
complete -o filenames -F _criagent criagent
"""
# Commands and actions that take objects of this node as arguments, and what lists those.
_IMAGES = "$(criagent image ls --quiet 2> /dev/null)"
_CONTAINERS = "$(criagent ps --all --quiet 2> /dev/null)"
_PODS = "$(criagent pods --quiet 2> /dev/null)"
_LISTS = {
    **dict.fromkeys(("rm", "export", "tag"), _IMAGES),
    **dict.fromkeys(("logs", "exec", "stats"), _CONTAINERS),
    "inspect": f"{_CONTAINERS} {_PODS}",
}
_ZSH = """(( $+functions[compdef] )) || {{ autoload -U compinit && compinit }}
_criagent() {{
    local names="{own}" at
    for at in "${{(@)words[2,CURRENT-1]}}"; do
        case $at in
{cases}
        esac
    done
    case ${{words[CURRENT-1]}} in
{values}
    esac
    compadd -- ${{=names}} || _files
}}
compdef _criagent criagent
"""


def arguments(command: argparse.ArgumentParser) -> None:
    """The shell."""
    command.add_argument(
        "shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish"
    )


def run(chosen: argparse.Namespace) -> int:
    """Always status 0. The script is generated from the argument parser itself."""
    from criagent.cli.main import parser

    argv, nested, values = grammar(parser())
    if chosen.shell == "fish":
        _fish(argv, nested, values)
        return 0
    variable, script = ("names", _ZSH) if chosen.shell == "zsh" else ("words", _BASH)
    cases = [
        f'            {name}) {variable}="{" ".join(_candidates(name, inner))}" ;;'
        for name, inner in nested.items()
    ]
    choices = [
        f'        {option}) {variable}="{" ".join(found)}" ;;' for option, found in values.items()
    ]
    sys.stdout.write(
        script.format(own=" ".join(argv), cases="\n".join(cases), values="\n".join(choices))
    )
    return 0


def _candidates(name: str, argv: list[str]) -> list[str]:
    return [*argv, _LISTS[name]] if name in _LISTS else argv


def _fish(argv: list[str], nested: dict[str, list[str]], values: dict[str, list[str]]) -> None:
    conditions = {"__fish_use_subcommand": argv}
    conditions |= {f"__fish_seen_subcommand_from {name}": inner for name, inner in nested.items()}
    for condition, candidates in conditions.items():
        for word in candidates:
            extra = f" -xa '{' '.join(values[word])}'" if word in values else ""
            print(f"complete -c criagent -n '{condition}' {_fish_word(word)}{extra}")
    for name, listing in _LISTS.items():
        condition = f"__fish_seen_subcommand_from {name}"
        for command in listing.split("$(")[1:]:
            inner = command.strip().removesuffix(")")
            print(f"complete -c criagent -n '{condition}' -a '({inner})'")


def _fish_word(word: str) -> str:
    if word.startswith("--"):
        return f"-l {word[2:]}"
    return f"-s {word[1:]}" if word.startswith("-") else f"-a '{word}'"


def grammar(
    parser: argparse.ArgumentParser,
) -> tuple[list[str], dict[str, list[str]], dict[str, list[str]]]:
    """The words of the top level, those that follow each command, and the values of options."""
    values: dict[str, list[str]] = {}
    argv, nested = _completions(parser, values)
    inner: dict[str, list[str]] = {}
    for name, command in nested.items():
        own, deeper = _completions(command, values)
        inner[name] = own
        for action, last in deeper.items():
            inner[action] = _completions(last, values)[0]
    return argv, inner, values


def _completions(
    parser: argparse.ArgumentParser, values: dict[str, list[str]]
) -> tuple[list[str], dict[str, argparse.ArgumentParser]]:
    argv: list[str] = []
    nested: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk a grammar
        argv += action.option_strings
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            nested = dict(action.choices)
            argv += nested
        elif action.choices and not action.option_strings:
            argv += [str(choice) for choice in action.choices]
        elif action.choices:
            # One option may take other values after another command: all are offered.
            choices = [str(choice) for choice in action.choices]
            for option in action.option_strings:
                values[option] = [*dict.fromkeys([*values.get(option, []), *choices])]
    return argv, nested
