# SPDX-License-Identifier: Apache-2.0
"""List images by repository and tag. `criagent image` changes them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from criagent.cli.common import output_argument, show, table
from criagent.cli.containers import selection
from criagent.cli.containers.calls import LIMIT_S, Calls, document, with_agent
from criagent.cli.progress import size_text

if TYPE_CHECKING:
    from criagent._proto import api_pb2

EXAMPLES = """examples:
  criagent images
  criagent images --digests registry.k8s.io/pause

"""
_NONE = "<none>"


def arguments(command: argparse.ArgumentParser) -> None:
    """Options as crictl has them."""
    command.add_argument(
        "image", metavar="TEXT", nargs="?", help="images with a name that has TEXT"
    )
    command.add_argument("--digests", action="store_true", help="show the digest as well")
    command.add_argument("--quiet", "-q", action="store_true", help="print ids only")
    command.add_argument("--no-trunc", action="store_true", help="print ids in full")
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached."""
    return with_agent(chosen, lambda calls: _list(chosen, calls))


def _list(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    answer = calls.images.ListImages(api_pb2.ListImagesRequest(), timeout=LIMIT_S)
    found = [one for one in answer.images if _wanted(chosen.image, one)]
    if chosen.output == "json":
        show(document(api_pb2.ListImagesResponse(images=found)))
    elif chosen.quiet:
        for image in found:
            print(image.id)
    else:
        rows = sorted(row for image in found for row in _rows(chosen, image))
        table(("IMAGE", "TAG", *(("DIGEST",) if chosen.digests else ()), "IMAGE ID", "SIZE"), rows)
    return 0


def _wanted(text: str | None, image: api_pb2.Image) -> bool:
    return text is None or any(text in name for name in (*image.repo_tags, *image.repo_digests))


def _rows(chosen: argparse.Namespace, image: api_pb2.Image) -> Iterator[tuple[str, ...]]:
    digests = dict(name.rpartition("@")[::2] for name in image.repo_digests)
    named = [name.rpartition(":")[::2] for name in image.repo_tags]
    tagged = {repository for repository, _ in named}
    named += [(repository, _NONE) for repository in digests if repository not in tagged]
    for repository, tag in named or [(_NONE, _NONE)]:
        digest = digests.get(repository, _NONE)
        shown = digest if chosen.no_trunc else digest.removeprefix("sha256:")[: selection.SHORT]
        yield (
            repository,
            tag,
            *((shown,) if chosen.digests else ()),
            selection.short_id(chosen, image.id),
            size_text(image.size),
        )
