"""Print a completion script: `source <(criagent completion bash)`."""

from __future__ import annotations

import argparse
import sys

_BASH = """_criagent() {{
    local words="{words}" at
    for at in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $at in
{cases}
        esac
    done
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
    [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _criagent criagent
"""


def arguments(command: argparse.ArgumentParser) -> None:
    """Which shell."""
    command.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(chosen: argparse.Namespace) -> int:
    """Always status 0. The script is made from the grammar itself."""
    from criagent.cli.main import parser

    words, nested = grammar(parser())
    if chosen.shell == "fish":
        for name in words:
            print(f"complete -c criagent -n __fish_use_subcommand -a '{name}'")
        for name, inner in nested.items():
            for word in inner:
                condition = f"'__fish_seen_subcommand_from {name}'"
                print(f"complete -c criagent -n {condition} -a '{word}'")
        return 0
    cases = "\n".join(
        f'            {name}) words="{" ".join(inner)}" ;;' for name, inner in nested.items()
    )
    if chosen.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    sys.stdout.write(_BASH.format(words=" ".join(words), cases=cases))
    return 0


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
