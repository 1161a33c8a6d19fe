# SPDX-License-Identifier: Apache-2.0
"""hosts.toml: InvalidRequestError that names the file, else hosts that can be asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from criagent.base.errors import InvalidRequestError
from criagent.image.hosts.hosts_toml import HostsDirectory
from tests.fuzz.frame import mutate_bytes

SEEDS = [
    (
        b'server = "https://registry-1.docker.io"\n[host."https://mirror:5000/v2"]\n'
        b'capabilities = ["pull", "resolve"]\nskip_verify = true\noverride_path = true\n'
        b'[host."https://mirror:5000/v2".header]\nx = ["a", "b"]\ny = "c"\n'
    ),
    b'[host."http://10.0.0.1"]\ncapabilities = ["pull"]\ndial_timeout = "1s"\n',
    b'[host]\n[host.a]\n[host."[::1]:5000"]\n',
    b'client = [["a.pem", "a.key"], "b.pem"]\nca = ["x", "y"]\n',
]
TOKENS = [
    b'"', b"'''", b"[", b"]", b"[[", b"=", b"{}", b"\n", b"1", b"true", b"host", b"server",
    b"http://[", b"://", b"\\u0000", b"1979-05-27", b"a.b.c", b"nan", b"header", b"[1,",
]  # fmt: skip
_TOP = tempfile.TemporaryDirectory(prefix="criagent-fuzz-")
_FILE = Path(_TOP.name, "registry.test", "hosts.toml")
_FILE.parent.mkdir()


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_bytes(rnd, rnd.choice([*SEEDS, *seeds]), TOKENS)


def check(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        hosts = HostsDirectory([Path(_TOP.name)]).hosts("registry.test")
    except InvalidRequestError as exc:
        assert str(_FILE) in str(exc)
        return
    assert hosts
    for host in hosts:
        assert isinstance(host.url, str)
        assert all(isinstance(part, str) for pair in host.header for part in pair)
