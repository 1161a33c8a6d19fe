# SPDX-License-Identifier: Apache-2.0
"""Show how the running agent stores images and containers, or store them by another driver."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import configuration, output_argument, show, table
from criagent.cli.progress import size_text
from criagent.config.storage_drivers import KNOWN

EXAMPLES = """examples:
  criagent storage info
  criagent storage info --output json
  criagent storage migrate --to erofs --dry-run

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """One sub-command for each action."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser("info", help="show driver, file system, free space and images")
    output_argument(action)
    action = actions.add_parser(
        "migrate", help="store all images by another driver; needs a stopped agent without pods"
    )
    action.add_argument(
        "--to", required=True, metavar="DRIVER", choices=KNOWN, help=f"one of {', '.join(KNOWN)}"
    )
    action.add_argument("--dry-run", action="store_true", help="say what would be done")
    action.add_argument(
        "--pull", action="store_true", help="pull images again whose blobs were not kept"
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when info cannot reach the agent."""
    return _info(chosen) if chosen.action == "info" else _migrate(chosen)


def _migrate(chosen: argparse.Namespace) -> int:
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    from criagent.base.errors import AgentError
    from criagent.daemon.migrate import Options, migrate
    from criagent.telemetry import logs

    logs.setup("warning")
    options = Options(to=chosen.to, dry_run=chosen.dry_run, pull=chosen.pull)
    try:
        return migrate(loaded[0], options, lambda text: print(text, flush=True))
    except (AgentError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _info(chosen: argparse.Namespace) -> int:
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc

    try:
        with connection(chosen) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            answer = stub.StorageInfo(admin_pb2.StorageInfoRequest(), timeout=30)
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    document = json.loads(answer.json)
    if chosen.output == "json":
        show(document)
    else:
        _print(document)
    return 0


def _print(document: dict[str, Any]) -> None:
    stores = [
        (f"Additional store {store['root']}", store["problem"] or f"{store['images']} images")
        for store in document["additional_stores"]
    ]
    for name, text in (*_driver(document), *stores):
        print(f"{name}: {text}")
    for other in document["other_drivers"]:
        print()
        print(f"Handlers: {', '.join(other['handlers']) or 'none any more'}")
        for name, text in _driver(other):
            print(f"{name}: {text}")
    _print_images(document)


def _driver(document: dict[str, Any]) -> list[tuple[str, str]]:
    can, containers = document["capabilities"], document["containers_file_system"]
    return [
        ("Driver", document["driver"]),
        ("Root", document["root"]),
        *_file_system(document["file_system"]),
        ("Containers", document["containers_root"]),
        *(_file_system(containers) if document["containers_root"] != document["root"] else ()),
        ("SELinux labels", _yes(value=can["selinux_labels"])),
        ("Containers share page cache", _yes(value=can["shared_page_cache"])),
        ("Limits of writable layers", _yes(value=can["size_limits"])),
        *((name[:1].upper() + name[1:], text) for name, text in document["facts"].items()),
        *((f"Used by {name}", size_text(size)) for name, size in document["usage"].items()),
        *([("Problem", document["problem"])] if document["problem"] else []),
    ]


def _print_images(document: dict[str, Any]) -> None:
    if not document["images"]:
        return
    print()
    head = ("IMAGE", "LAYERS", "UNPACKED", "SHARED", "UNIQUE", "BLOBS")
    sizes = ("unpacked_bytes", "shared_bytes", "unique_bytes", "blob_bytes")
    table(
        head,
        [
            (
                (image["names"] or [image["id"][:19]])[0],
                str(image["layers"]),
                *(size_text(image[size]) for size in sizes),
            )
            for image in document["images"]
        ],
    )


def _file_system(place: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("File system", f"{place['type']} on {place['source']}, mounted at {place['mountpoint']}"),
        ("Directory entries have types", _yes(value=place["d_type"])),
        ("Free", f"{size_text(place['free_bytes'])} of {size_text(place['total_bytes'])}"),
        ("Free inodes", _inodes(place)),
    ]


def _yes(*, value: bool) -> str:
    return "yes" if value else "no"


def _inodes(place: dict[str, Any]) -> str:
    if not place["inodes"]:
        return "no fixed number"
    return f"{place['free_inodes']} of {place['inodes']}"
