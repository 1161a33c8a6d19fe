# SPDX-License-Identifier: Apache-2.0
"""Pull, tag, remove, list, import, export, check and prune the images of the running agent."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import output_argument, show, table
from criagent.cli.progress import Bar, size_text

if TYPE_CHECKING:
    import grpc

    from criagent._proto import admin_pb2

_CHUNK = 1 << 20
_EVERY_S = 0.2  # how often a pull is looked at
_PROGRESS_S = 5.0

EXAMPLES = """examples:
  criagent image pull docker.io/library/busybox:1.36
  criagent image export node.tar docker.io/library/busybox:1.36
  criagent image import node.tar
  criagent image fsck --repair

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """One sub-command for each action."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser("import", help="import an OCI or Docker archive")
    action.add_argument("file", metavar="FILE", help='archive to read, or "-" for standard input')
    action.add_argument("--digests", action="store_true", help="print digest references as well")
    output_argument(action)
    action = actions.add_parser("export", help="export images as one archive")
    action.add_argument("file", metavar="FILE", help='archive to write, or "-" for standard output')
    action.add_argument("images", nargs="+", metavar="IMAGE", help="reference or id")
    action = actions.add_parser("ls", help="list images")
    action.add_argument("--quiet", "-q", action="store_true", help="print names only")
    output_argument(action)
    action = actions.add_parser("pull", help="pull an image from its registry")
    action.add_argument("image", metavar="IMAGE", help="reference")
    action = actions.add_parser("tag", help="add a tag to an image")
    action.add_argument("image", metavar="IMAGE", help="reference or id")
    action.add_argument("tag", metavar="TAG", help="reference to add")
    action = actions.add_parser("rm", help="remove references, and images that have none left")
    action.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="reference, or id to remove an image with all its references",
    )
    action = actions.add_parser("fsck", help="check stored images against the disk")
    action.add_argument(
        "--repair",
        action="store_true",
        help="remove broken records and layers, and make them again from blobs or by a pull",
    )
    action.add_argument(
        "--contents",
        choices=("sample", "full"),
        help="unpack one layer in eight, or every layer, again from its blob; compare all files",
    )
    output_argument(action)
    action = actions.add_parser("prune", help="remove data that no image or container uses")
    output_argument(action)


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure or for findings that fsck did not repair, 3 without an agent."""
    import grpc

    actions: dict[str, Callable[[argparse.Namespace, grpc.Channel], int]] = {
        "import": _import,
        "export": _export,
        "ls": _list,
        "pull": _pull,
        "tag": _tag,
        "rm": _remove,
        "fsck": _fsck,
        "prune": _prune,
    }
    try:
        with connection(chosen) as channel:
            return actions[chosen.action](chosen, channel)
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{chosen.file}: {error.strerror or error}", file=sys.stderr)
        return 1


def _import(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import admin_pb2, admin_pb2_grpc

    if chosen.file == "-" and sys.stdin.isatty():
        print(
            "refusing to read an archive from a terminal; redirect standard input", file=sys.stderr
        )
        return 2
    total = 0 if chosen.file == "-" else Path(chosen.file).stat().st_size
    source: IO[bytes] = (
        sys.stdin.buffer if chosen.file == "-" else Path(chosen.file).open("rb")  # noqa: SIM115
    )

    def chunks() -> Iterator[admin_pb2.ImportImagesRequest]:
        with Bar("sent", total) as bar:
            while data := source.read(_CHUNK):
                bar.moved(len(data))
                yield admin_pb2.ImportImagesRequest(chunk=data)

    with source:
        answer = admin_pb2_grpc.AdminStub(channel).ImportImages(chunks())
    for entry in answer.skipped:
        print(f"skipped {entry.entry}: {entry.reason}", file=sys.stderr)
    if chosen.output == "json":
        show(
            [
                {"id": image.id, "tags": list(image.tags), "digests": list(image.digests)}
                for image in answer.images
            ]
        )
    else:
        for image in answer.images:
            names = [*image.tags, *(image.digests if chosen.digests else ())]
            print(" ".join(names) or image.id)
    return 0


def _export(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import admin_pb2, admin_pb2_grpc

    if chosen.file == "-" and sys.stdout.isatty():
        print(
            "refusing to write an archive to a terminal; redirect standard output", file=sys.stderr
        )
        return 2
    request = admin_pb2.ExportImagesRequest(images=chosen.images)
    stream = admin_pb2_grpc.AdminStub(channel).ExportImages(request)
    first = next(stream, None)  # before the file is created: the call may fail
    with _target(chosen.file) as target, Bar("written", 0) as bar:
        while first is not None:
            target.write(first.chunk)
            bar.moved(len(first.chunk))
            first = next(stream, None)
        target.flush()
    return 0


@contextlib.contextmanager
def _target(name: str) -> Iterator[IO[bytes]]:
    """Where an archive is written to; a file appears under its name only once it is complete."""
    if name == "-":
        yield sys.stdout.buffer
        return
    path = Path(name).resolve()
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as device:  # write to a pipe or a device, never replace it
            yield device
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # exclusive: never through a link that another user placed there
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _list(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import api_pb2, api_pb2_grpc

    answer = api_pb2_grpc.ImageServiceStub(channel).ListImages(api_pb2.ListImagesRequest())
    images = sorted(answer.images, key=lambda image: (list(image.repo_tags), image.id))
    if chosen.output == "json":
        show(
            [
                {
                    "id": image.id,
                    "tags": list(image.repo_tags),
                    "digests": list(image.repo_digests),
                    "size": image.size,
                    "pinned": image.pinned,
                }
                for image in images
            ]
        )
        return 0
    if chosen.quiet:
        for image in images:
            for name in image.repo_tags or [image.id]:
                print(name)
        return 0
    rows = [
        (tag, image.id.removeprefix("sha256:")[:13], size_text(image.size))
        for image in images
        for tag in (image.repo_tags or ["<none>"])
    ]
    table(("IMAGE", "ID", "SIZE"), rows)
    return 0


def _pull(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import api_pb2, api_pb2_grpc

    request = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image=chosen.image))
    pull = api_pb2_grpc.ImageServiceStub(channel).PullImage.future(request)
    try:
        if sys.stderr.isatty():
            _show_pull(channel, chosen.image, pull)
        print(pull.result().image_ref)
    except KeyboardInterrupt:
        pull.cancel()
        raise
    return 0


def _show_pull(channel: grpc.Channel, image: str, pull: grpc.Future[Any]) -> None:
    """A bar until the pull ends; an agent that knows no progress gets none."""
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc

    stub, request = admin_pb2_grpc.AdminStub(channel), admin_pb2.PullProgressRequest(image=image)
    with Bar("pulled", 0) as bar:
        while not pull.done():
            try:
                found = stub.PullProgress(request, timeout=_PROGRESS_S)
            except grpc.RpcError:
                return
            bar.at(found.received_bytes, found.expected_bytes)
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.RpcError):
                pull.result(timeout=_EVERY_S)


def _tag(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import admin_pb2, admin_pb2_grpc

    request = admin_pb2.TagImageRequest(image=chosen.image, tag=chosen.tag)
    answer = admin_pb2_grpc.AdminStub(channel).TagImage(request)
    print(" ".join(answer.tags))
    return 0


def _remove(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc

    stub = admin_pb2_grpc.AdminStub(channel)
    status = 0
    for name in chosen.images:
        try:
            answer = stub.RemoveImageName(admin_pb2.RemoveImageNameRequest(image=name))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            print(f"{name} is not on this node", file=sys.stderr)
            status = 1
            continue
        for removed in answer.names:
            print(f"untagged {removed}")
        if answer.removed_id:
            print(f"removed {answer.removed_id}")
    return status


def _fsck(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import admin_pb2, admin_pb2_grpc

    request = admin_pb2.FsckRequest(repair=chosen.repair, contents=chosen.contents or "")
    answer = admin_pb2_grpc.AdminStub(channel).Fsck(request)
    if chosen.output == "json":
        show(
            [
                {"object": f.object, "problem": f.problem, "repaired": f.repaired}
                for f in answer.findings
            ]
        )
        _not_compared(answer)
    else:
        _not_compared(answer)
        for finding in answer.findings:
            done = " (repaired)" if finding.repaired else ""
            print(f"{finding.object}: {finding.problem}{done}")
        if not answer.findings:
            print("no problem found")
        if chosen.contents:
            print(f"compared every file of {answer.layers_compared} layers")
    return 1 if any(not finding.repaired for finding in answer.findings) else 0


def _not_compared(answer: admin_pb2.FsckResponse) -> None:
    """On standard error: it is no problem of the layers."""
    for layer in answer.not_compared:
        print(f"not compared: {layer.object}: {layer.problem}", file=sys.stderr)


def _prune(chosen: argparse.Namespace, channel: grpc.Channel) -> int:
    from criagent._proto import admin_pb2, admin_pb2_grpc

    answer = admin_pb2_grpc.AdminStub(channel).Prune(admin_pb2.PruneRequest())
    if chosen.output == "json":
        show(
            {
                "freed_bytes": answer.freed_bytes,
                "blobs": answer.blobs,
                "snapshots": answer.snapshots,
            }
        )
    else:
        print(
            f"freed {size_text(answer.freed_bytes)}: {answer.blobs} blobs, "
            f"{answer.snapshots} snapshots"
        )
    return 0
