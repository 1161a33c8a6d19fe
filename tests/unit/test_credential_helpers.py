# SPDX-License-Identifier: Apache-2.0
"""Credential helpers: real programs that behave, hang, print rubbish, are missing or not root's."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import RegistryDeniedError
from criagent.image.documents.manifest import OCI_MANIFEST
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts import helpers
from criagent.image.hosts.auth_file import Credentials, Helper
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.registries import RegistriesFile, RegistryHosts
from criagent.image.registry import Progress
from tests.support.pulling import Node, Registry, name
from tests.support.waiting import content, until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="helpers have to belong to root")

MANIFEST = json.dumps({"schemaVersion": 2}).encode()
HELPER = Helper(name="mine", server="r.test", file="/etc/auth.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for programs, in front of PATH."""
    found = tmp_path / "bin"
    found.mkdir()
    monkeypatch.setenv("PATH", f"{found}:{os.environ['PATH']}")
    monkeypatch.setenv("AWS_PROFILE", "node")
    return found


def program(folder: Path, text: str) -> Path:
    file = folder / "docker-credential-mine"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


async def failure(limit_s: float = 10.0) -> str:
    with pytest.raises(RegistryDeniedError) as caught:
        await helpers.ask(HELPER, limit_s)
    text = str(caught.value)
    start = "credentials for r.test: docker-credential-mine, which /etc/auth.json names, "
    assert text.startswith(start)
    assert "s3cret" not in text
    return text.removeprefix(start)


async def test_it_is_asked_by_the_protocol_with_the_agents_environment(folder: Path) -> None:
    program(
        folder,
        '[ "$*" = get ] || exit 9\nread -r server\n'
        'printf \'{"ServerURL":"%s","Username":"%s","Secret":"%s"}\' "$server" "$AWS_PROFILE" pw',
    )
    assert await helpers.ask(HELPER, 10) == Credentials(username="node", password="pw")


async def test_a_token_is_an_identity_token(folder: Path) -> None:
    program(folder, """echo '{"ServerURL":"","Username":"<token>","Secret":"s3cret"}'""")
    assert await helpers.ask(HELPER, 10) == Credentials(identity_token="s3cret")


@pytest.mark.parametrize(
    "text",
    [
        "echo credentials not found in native keychain; exit 1",
        """echo '{"ServerURL":"","Username":"","Secret":""}'""",
    ],
)
async def test_without_credentials_there_are_none(folder: Path, text: str) -> None:
    program(folder, text)
    assert await helpers.ask(HELPER, 10) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo no identity; exit 1", "failed with exit status 1: no identity"),
        ("""echo '{"Secret":"s3cret"}'; exit 3""", "failed with exit status 3"),
        ("echo s3cret >&2; exit 4", "failed with exit status 4"),
        ("kill -9 $$", "failed with exit status -9"),
        ("echo s3cret", "answered something else than its JSON object of Username and Secret"),
        ("echo '[]'", "answered something else"),
        ("""echo '{"Username":"s3cret"}'""", "answered something else"),
        ("true", "answered something else"),
        ("exec head -c 100000 /dev/zero", "answered something else"),
        ("exec /nonexistent/s", "failed with exit status 127"),
    ],
)
async def test_a_failure_is_named_and_no_output_of_it_shown(
    folder: Path, text: str, why: str
) -> None:
    program(folder, text)
    assert (await failure()).startswith(why)


async def test_one_that_hangs_is_ended_with_its_children(folder: Path, tmp_path: Path) -> None:
    program(folder, f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    begun = time.monotonic()
    assert (await failure(1.0)).startswith("has not answered for 1 s; repair it, or raise ")
    assert time.monotonic() - begun < 8
    child = int((tmp_path / "child").read_text())
    # SIGKILL has been sent; the process ends when the kernel gets to it.
    stat = Path(f"/proc/{child}/stat")
    until(lambda: content(stat).rpartition(b")")[2].split()[:1] in ([], [b"Z"]), "its child's end")


async def test_one_that_is_missing_or_not_roots_alone_is_not_run(folder: Path) -> None:
    assert (await failure()).startswith("is not in the agent's PATH")
    file = program(folder, "echo '{}'")
    os.chown(file, 1234, 0)
    assert "belongs to uid 1234 and not to root; run chown root " in await failure()
    os.chown(file, 0, 0)
    file.chmod(0o775)
    assert "can be written by others than root" in await failure()
    file.chmod(0o755)
    file.write_bytes(b"\0")
    assert (await failure()).startswith("cannot be run: Exec format error")


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    """A registry that wants alice."""
    one = Registry()
    await one.start()
    one.put(MANIFEST, OCI_MANIFEST, "1")
    wanted = "Basic " + base64.b64encode(b"alice:s3cret").decode()

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == wanted:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})

    one.hook = hook
    yield one
    await one.stop()


async def pulled(node: Node, registry: Registry, path: str = "a/b", host: str = "") -> bytes:
    reference = parse_reference(f"{host or name(registry).partition('/')[0]}/{path}:1")
    session = node.client.session(reference, None)
    return (await node.client.manifest(session, "1", Progress())).content


async def test_a_registry_that_wants_credentials_gets_those_of_its_helper(
    folder: Path, tmp_path: Path, node: Node, registry: Registry
) -> None:
    host = name(registry).partition("/")[0]
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {host: "mine"}}))
    program(
        folder,
        f"""echo x >> {tmp_path}/asked; echo '{{"Username":"alice","Secret":"s3cret"}}'""",
    )
    assert await pulled(node, registry) == MANIFEST
    assert (tmp_path / "asked").read_text() == "x\n"
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"other.test": "mine"}}))
    with pytest.raises(RegistryDeniedError, match="requires credentials"):
        await pulled(node, registry)
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "mine"}))
    assert await pulled(node, registry) == MANIFEST


async def test_a_helper_that_hangs_delays_its_own_pull_alone(
    folder: Path, tmp_path: Path, node: Node, registry: Registry
) -> None:
    host = name(registry).partition("/")[0]
    auths = {f"{host}/open": {"auth": base64.b64encode(b"alice:s3cret").decode()}}
    runs = tmp_path / "runs"
    os.mkfifo(runs)
    program(folder, f"echo > {runs}; sleep 1000")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "mine", "auths": auths}))
    stuck = asyncio.create_task(pulled(node, registry))  # of a path without an entry
    await asyncio.to_thread(runs.read_text)
    async with asyncio.timeout(4):  # the helper's limit is 5 s
        assert await pulled(node, registry, "open/x") == MANIFEST
    assert not stuck.done()
    with pytest.raises(RegistryDeniedError, match="has not answered for 5 s"):
        await stuck


@pytest.fixture
async def with_conf(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that reads registries.conf."""
    directory = HostsDirectory([tmp_path / "certs.d"])
    one = Node(tmp_path, hosts=RegistryHosts(directory, RegistriesFile(tmp_path / "r.conf")))
    yield one
    await one.close()


def named(folder: Path, *helpers: str) -> None:
    (folder / "r.conf").write_text(f"credential-helpers = {json.dumps(helpers)}\n")


ALICE = """echo '{"Username":"alice","Secret":"s3cret"}'"""
NONE = "echo credentials not found in native keychain; exit 1"


@pytest.mark.parametrize(
    ("mine", "helpers", "in_file"),
    [
        (ALICE, ["mine"], False),
        (ALICE, ["containers-auth.json", "mine"], False),
        (NONE, ["mine", "containers-auth.json"], True),
        ("exit 3", ["mine", "containers-auth.json"], True),
        ("exit 3", [], True),
    ],
)
async def test_helpers_of_registries_conf_are_asked_in_their_order(
    folder: Path,
    tmp_path: Path,
    with_conf: Node,
    registry: Registry,
    mine: str,
    helpers: list[str],
    in_file: bool,
) -> None:
    named(tmp_path, *helpers)
    program(folder, mine)
    host = name(registry).partition("/")[0]
    auth = base64.b64encode(b"alice:s3cret").decode()
    auths = {host: {"auth": auth}} if in_file else {}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    assert await pulled(with_conf, registry) == MANIFEST


async def test_the_file_of_credentials_counts_only_where_the_list_has_it(
    folder: Path, tmp_path: Path, with_conf: Node, registry: Registry
) -> None:
    program(folder, NONE)
    host = name(registry).partition("/")[0]
    auth = base64.b64encode(b"alice:s3cret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    named(tmp_path, "mine")
    with pytest.raises(RegistryDeniedError, match="requires credentials"):
        await pulled(with_conf, registry)


async def test_the_first_failure_is_the_error_when_nobody_has_credentials(
    folder: Path, tmp_path: Path, with_conf: Node, registry: Registry
) -> None:
    program(folder, "echo no identity; exit 1")
    named(tmp_path, "mine", "gone")
    with pytest.raises(RegistryDeniedError) as caught:
        await pulled(with_conf, registry)
    file = tmp_path / "r.conf"
    text = f"docker-credential-mine, which {file} or a drop-in beside it names, failed"
    assert f"{text} with exit status 1: no identity" in str(caught.value)
