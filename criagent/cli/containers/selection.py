# SPDX-License-Identifier: Apache-2.0
"""The options that narrow a list, and what they select."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from criagent.cli.common import output_argument
from criagent.cli.containers.calls import CommandError
from criagent.cli.containers.found import pod_of

if TYPE_CHECKING:
    from criagent._proto import api_pb2

T = TypeVar("T", "api_pb2.PodSandbox", "api_pb2.Container")

SHORT = 13  # characters of an id, as crictl shows them


def list_arguments(command: argparse.ArgumentParser, what: str) -> None:
    """Options that the lists of pods and containers share."""
    command.add_argument("--name", metavar="REGEX", help=f"{what} whose name matches")
    command.add_argument("--namespace", metavar="NAME", help=f"{what} of this namespace")
    label_argument(command, what)
    command.add_argument(
        "--last", "-n", metavar="N", type=_number, help=f"the N newest {what} of any state"
    )
    command.add_argument("--latest", "-l", action="store_true", help="the same as --last 1")
    command.add_argument("--quiet", "-q", action="store_true", help="print ids only")
    command.add_argument("--no-trunc", action="store_true", help="print ids in full")
    output_argument(command)


def label_argument(command: argparse.ArgumentParser, what: str) -> None:
    """--label, which may be repeated."""
    command.add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        type=_label,
        default=[],
        help=f"{what} with this label, or with KEY of any value; may be repeated",
    )


def pods(
    chosen: argparse.Namespace, found: Sequence[api_pb2.PodSandbox]
) -> list[api_pb2.PodSandbox]:
    """Those that the options select, in their order. Raises CommandError for a wrong pattern."""
    kept = [
        pod
        for pod in _named(chosen.name, _labelled(chosen.label, found))
        if chosen.namespace in {None, pod.metadata.namespace}
    ]
    return kept[: _most(chosen)]


def containers(
    chosen: argparse.Namespace,
    found: Sequence[api_pb2.Container],
    owners: Sequence[api_pb2.PodSandbox],
) -> list[api_pb2.Container]:
    """Those that the options select, in their order. Raises CommandError for a wrong option."""
    pod = pod_of(chosen.pod, owners).id if chosen.pod else None
    in_namespace = {one.id for one in owners if chosen.namespace in {None, one.metadata.namespace}}
    kept = [
        container
        for container in _named(chosen.name, _labelled(chosen.label, found))
        if pod in {None, container.pod_sandbox_id}
        and (chosen.namespace is None or container.pod_sandbox_id in in_namespace)
    ]
    return kept[: _most(chosen)]


def any_state(chosen: argparse.Namespace) -> bool:
    """Whether --last or --latest ask for objects of every state, as with crictl."""
    return chosen.latest or chosen.last is not None


def short_id(chosen: argparse.Namespace, full: str) -> str:
    """An id as the options want it."""
    return full if chosen.no_trunc else full.removeprefix("sha256:")[:SHORT]


def _most(chosen: argparse.Namespace) -> int | None:
    return 1 if chosen.latest else chosen.last


def _label(text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError(f"{text!r} names no label; write KEY or KEY=VALUE")
    return key, equals, value


def _labelled(labels: Sequence[tuple[str, str, str]], found: Sequence[T]) -> Iterator[T]:
    for one in found:
        if all(
            key in one.labels and (not equals or one.labels[key] == value)
            for key, equals, value in labels
        ):
            yield one


def _named(pattern: str | None, found: Iterator[T]) -> Iterator[T]:
    if pattern is None:
        return found
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise CommandError(f"--name {pattern!r} is not a regular expression: {error}") from None
    return (one for one in found if wanted.search(one.metadata.name))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)
