"""Print a completion script: `source <(criagent completion bash)`."""

from __future__ import annotations

import argparse
import sys

_BASH = """_criagent() {{
    local words="{words}" at word="${{COMP_WORDS[COMP_CWORD]}}"
    for at in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $at in
{cases}
        esac
    done
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [ ${{#COMPREPLY[@]}} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}}
complete -o filenames -F _criagent criagent
"""
_ZSH = """(( $+functions[compdef] )) || {{ autoload -U compinit && compinit }}
_criagent() {{
    local names="{words}" at
    for at in "${{(@)words[2,CURRENT-1]}}"; do
        case $at in
{cases}
        esac
    done
    compadd -- ${{=names}} || _files
}}
compdef _criagent criagent
"""


def arguments(command: argparse.ArgumentParser) -> None:
    """Which shell."""
    command.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(chosen: argparse.Namespace) -> int:
    """Always status 0. The script is made from the grammar itself."""
    from criagent.cli.main import parser

    words, nested = grammar(parser())
    if chosen.shell == "fish":
        _fish(words, nested)
        return 0
    variable, script = ("names", _ZSH) if chosen.shell == "zsh" else ("words", _BASH)
    cases = "\n".join(
        f'            {name}) {variable}="{" ".join(inner)}" ;;' for name, inner in nested.items()
    )
    sys.stdout.write(script.format(words=" ".join(words), cases=cases))
    return 0


def _fish(words: list[str], nested: dict[str, list[str]]) -> None:
    conditions = {"__fish_use_subcommand": words}
    conditions |= {f"__fish_seen_subcommand_from {name}": inner for name, inner in nested.items()}
    for condition, candidates in conditions.items():
        for word in candidates:
            print(f"complete -c criagent -n '{condition}' {_fish_word(word)}")


def _fish_word(word: str) -> str:
    if word.startswith("--"):
        return f"-l {word[2:]}"
    return f"-s {word[1:]}" if word.startswith("-") else f"-a '{word}'"


def grammar(parser: argparse.ArgumentParser) -> tuple[list[str], dict[str, list[str]]]:
    """Words of the top level, and those that follow each command."""
    words, nested = _words(parser)
    inner: dict[str, list[str]] = {}
    for name, command in nested.items():
        own, deeper = _words(command)
        inner[name] = own
        for action, last in deeper.items():
            inner[action] = _words(last)[0]
    return words, inner


def _words(
    parser: argparse.ArgumentParser,
) -> tuple[list[str], dict[str, argparse.ArgumentParser]]:
    words: list[str] = []
    nested: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk a grammar
        words += action.option_strings
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            nested = dict(action.choices)
            words += nested
        elif action.choices and not action.option_strings:
            words += [str(choice) for choice in action.choices]
    return words, nested
