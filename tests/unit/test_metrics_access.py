# SPDX-License-Identifier: Apache-2.0
"""Metrics on an address that other machines reach: over TLS, with a token, asked over sockets."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.base.certificate import Certificate
from criagent.base.errors import UnavailableError
from criagent.base.tokens import TokenFile, read_tokens
from criagent.config.load import ConfigError, load
from criagent.config.sections import Config
from criagent.config.sections import Telemetry as Section
from criagent.daemon.metrics_access import metrics_access
from criagent.doctor import metrics as doctor
from criagent.telemetry.metrics_server import Access
from criagent.telemetry.telemetry import Telemetry
from tests.unit.test_telemetry import free_port

TOKEN, OTHER = "a" * 32, "b" * 32
PAGE = "<h1>a node</h1>"


def make_certificate(folder: Path, name: str = "node") -> tuple[Path, Path]:
    """A certificate of its own issuer for 127.0.0.1, and its key."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", f"{key}.new", "-out", f"{cert}.new"],
        check=True, capture_output=True,
    )  # fmt: skip
    Path(f"{key}.new").rename(key)
    Path(f"{cert}.new").rename(cert)
    return cert, key


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
def metrics() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.close()


def get(
    port: int, path: str, authorization: str = "", host: str = "", trust: Path | None = None
) -> tuple[int, str]:
    connection = (
        http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=10, context=ssl.create_default_context(cafile=trust)
        )
        if trust
        else http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    )
    given = {"Authorization": authorization, "Host": host}
    connection.request("GET", path, headers={key: value for key, value in given.items() if value})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def serve(metrics: Telemetry, access: Access) -> int:
    port = free_port()
    metrics.serve(f"127.0.0.1:{port}", lambda: True, lambda: PAGE, access)
    return port


def test_without_its_token_nothing_but_health_is_read(metrics: Telemetry, token: Path) -> None:
    port = serve(metrics, Access(tokens=TokenFile(token)))
    for path in ("/metrics", "/", "/x"):
        for wrong in ("", TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}",
                      f"Bearer {TOKEN} x", "Bearer \xe9"):  # fmt: skip
            status, body = get(port, path, wrong)
            assert (status, body) == (
                401,
                "a bearer token of telemetry.metrics_token_file is needed\n",
            )
    assert get(port, "/healthz") == (200, "ok\n")
    for scheme in ("Bearer", "bearer"):
        assert get(port, "/metrics", f"{scheme} {TOKEN}")[0] == 200
    # with the token the page may have any name: a foreign web site has none
    assert get(port, "/", f"Bearer {TOKEN}", host="node.example:9880") == (200, PAGE)


def test_a_new_token_counts_at_once_and_a_broken_file_keeps_the_old_ones(
    metrics: Telemetry, token: Path
) -> None:
    port = serve(metrics, Access(tokens=TokenFile(token)))
    token.write_text(f"{TOKEN}\n{OTHER}\n")  # both, while readers change over
    assert [get(port, "/metrics", f"Bearer {one}")[0] for one in (TOKEN, OTHER)] == [200, 200]
    token.write_text(f"{OTHER}\n")
    assert [get(port, "/metrics", f"Bearer {one}")[0] for one in (TOKEN, OTHER)] == [401, 200]
    token.write_text("short\n")
    assert get(port, "/metrics", f"Bearer {OTHER}")[0] == 200
    token.unlink()
    assert get(port, "/metrics", f"Bearer {OTHER}")[0] == 200


def test_over_tls_with_a_certificate_that_changes(metrics: Telemetry, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    port = serve(metrics, Access(Certificate(cert, key)))
    assert get(port, "/metrics", trust=cert)[0] == 200
    with pytest.raises((http.client.HTTPException, OSError)):
        get(port, "/metrics")  # without TLS
    old = cert.read_bytes()
    make_certificate(tmp_path, "renewed")
    assert cert.read_bytes() != old
    assert get(port, "/metrics", trust=cert)[0] == 200  # which trusts the new one alone
    cert.write_text("rubbish")
    served = ssl.get_server_certificate(("127.0.0.1", port))
    assert "BEGIN CERTIFICATE" in served  # the renewed one stays


def test_who_shakes_no_hands_holds_up_nobody(metrics: Telemetry, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    port = serve(metrics, Access(Certificate(cert, key)))
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/metrics", trust=cert)[0] == 200


def test_more_than_64_connections_are_hung_up_on(metrics: Telemetry) -> None:
    port = serve(metrics, Access())
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as late:
            assert late.recv(1) == b""
    finally:
        for one in held:
            one.close()


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "has no token"),
        ("\n \n", "has no token"),
        ("fifteen-charact", "token 1"),
        (f"{TOKEN}\nwith a space in it", "token 2"),
        (TOKEN + "ü", "token 1"),
    ],
)
def test_a_file_without_a_usable_token_is_refused(token: Path, content: str, wrong: str) -> None:
    token.write_text(content)
    with pytest.raises(ValueError, match=wrong):
        read_tokens(token)


def test_files_that_vanish_before_the_start_name_their_keys(tmp_path: Path) -> None:
    section = Section(metrics_token_file=str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="metrics_token_file cannot be used"):
        metrics_access(section)


# The configuration


def problems(tmp_path: Path, *keys: str) -> list[str]:
    (tmp_path / "config.toml").write_text("\n".join(("[telemetry]", *keys)) + "\n")
    try:
        load(tmp_path / "config.toml")
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


ANYWHERE = 'metrics_address = "0.0.0.0:9880"'


def test_an_address_for_others_needs_tls_and_a_token(tmp_path: Path, token: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = f'metrics_tls_cert = "{cert}"', f'metrics_tls_key = "{key}"'
    with_token = f'metrics_token_file = "{token}"'
    assert problems(tmp_path, ANYWHERE, *tls, with_token) == []
    assert problems(tmp_path, ANYWHERE, "metrics_insecure = true") == []
    assert problems(tmp_path, 'metrics_address = "[::1]:9880"') == []
    for keys, missing in (
        ((), "telemetry.metrics_tls_cert and telemetry.metrics_token_file"),
        ((with_token,), "set telemetry.metrics_tls_cert, or"),
        (tls, "set telemetry.metrics_token_file, or"),
    ):
        for address in ("0.0.0.0:9880", "[::]:9880", "192.0.2.1:9880", "[2001:db8::1]:9880"):
            (problem,) = problems(tmp_path, f'metrics_address = "{address}"', *keys)
            assert missing in problem
            assert "metrics_insecure = true" in problem


def test_files_of_certificate_and_token_are_looked_at(tmp_path: Path, token: Path) -> None:
    cert, _ = make_certificate(tmp_path)
    (problem,) = problems(tmp_path, f'metrics_tls_cert = "{cert}"')
    assert "set both the certificate and its key" in problem
    (problem,) = problems(tmp_path, f'metrics_token_file = "{tmp_path}/none"')
    assert "cannot be read" in problem
    token.write_text("short")
    (problem,) = problems(tmp_path, f'metrics_token_file = "{token}"')
    assert "openssl rand" in problem


def test_the_doctor_knows_the_agent_behind_tls_and_a_token(
    metrics: Telemetry, token: Path, tmp_path: Path
) -> None:
    cert, key = make_certificate(tmp_path)
    access = Access(certificate=Certificate(cert, key), tokens=TokenFile(token))
    port = serve(metrics, access)
    section = Section(metrics_address=f"127.0.0.1:{port}", metrics_tls_cert=str(cert))
    assert doctor.read(Config(telemetry=section)).answers == "agent"
    plain = Section(metrics_address=f"127.0.0.1:{port}")
    assert doctor.read(Config(telemetry=plain)).answers == "other"
