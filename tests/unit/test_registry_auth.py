# SPDX-License-Identifier: Apache-2.0
"""Credentials belong to the origin that asked for them; token services as Go clients ask them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import RegistryDeniedError, RegistryError
from criagent.image.documents.manifest import OCI_MANIFEST, Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.registry import Progress
from tests.support.pulling import SMALL, Node, Registry, digest, hosts_toml, name

ALICE = RegistryAuth(username="alice", password="topsecret")
MANIFEST = json.dumps({"schemaVersion": 2}).encode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.put(MANIFEST, OCI_MANIFEST, "1")
    yield one
    await one.stop()


@pytest.fixture
async def other() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


def denied(*challenges: str) -> web.Response:
    response = web.Response(status=401)
    for challenge in challenges:
        response.headers.add("WWW-Authenticate", challenge)
    return response


def sent(registry: Registry) -> set[str]:
    return {headers.get("Authorization", "") for headers in registry.headers}


async def manifest(node: Node, registry: Registry, auth: RegistryAuth | None = None) -> bytes:
    session = node.client.session(parse_reference(name(registry)), auth)
    async with asyncio.timeout(20):
        return (await node.client.manifest(session, "1", Progress())).content


class Tokens:
    """A token service at /token of a registry, which wants the tokens that it gives."""

    def __init__(self, registry: Registry, challenge: str = "", answer: bytes = b"") -> None:
        self.registry = registry
        self.asked: list[tuple[str, dict[str, list[str]], str]] = []
        self.answer = answer or b'{"token":"t"}'
        self.headers: dict[str, str] = {}
        self.refuse: dict[str, int] = {}
        self.challenge = challenge or 'Bearer realm="{url}/token",service="s"'
        registry.hook = self

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            fields = request.query if request.method == "GET" else await request.post()
            parameters = {key: [str(v) for v in fields.getall(key)] for key in fields}
            authorization = request.headers.get("Authorization", "")
            self.asked.append((request.method, parameters, authorization))
            if status := self.refuse.get(request.method):
                return web.Response(status=status)
            return web.Response(body=self.answer, headers=self.headers)
        if request.headers.get("Authorization") == "Bearer t":
            return None
        return denied(self.challenge.format(url=self.registry.url))


async def test_without_credentials_a_token_is_asked_for_by_get(
    node: Node, registry: Registry
) -> None:
    tokens = Tokens(registry)
    assert await manifest(node, registry) == MANIFEST
    parameters = {"service": ["s"], "scope": ["repository:a/b:pull"]}
    assert tokens.asked == [("GET", parameters, "")]


@pytest.mark.parametrize(
    ("auth", "form"),
    [
        (ALICE, {"grant_type": ["password"], "username": ["alice"], "password": ["topsecret"]}),
        (
            RegistryAuth(identity_token="id"),
            {"grant_type": ["refresh_token"], "refresh_token": ["id"]},
        ),
        (
            RegistryAuth(username="u", password="", identity_token="id"),
            {"grant_type": ["refresh_token"], "refresh_token": ["id"]},
        ),
    ],
)
async def test_credentials_are_posted_first(
    node: Node, registry: Registry, auth: RegistryAuth, form: dict[str, list[str]]
) -> None:
    tokens = Tokens(registry)
    assert await manifest(node, registry, auth) == MANIFEST
    ((method, parameters, authorization),) = tokens.asked
    common = {"service": ["s"], "scope": ["repository:a/b:pull"], "client_id": ["criagent"]}
    assert (method, parameters, authorization) == ("POST", {**common, **form}, "")


@pytest.mark.parametrize("status", [400, 401, 404, 405, 307, 501])
@pytest.mark.parametrize(
    ("auth", "authorization"),
    [
        (ALICE, basic("alice", "topsecret")),
        (RegistryAuth(identity_token="id"), basic("", "id")),
        (RegistryAuth(username="u", identity_token="id"), basic("u", "id")),
        (RegistryAuth(username="u", password="p", identity_token="id"), basic("u", "p")),
    ],
)
async def test_a_service_that_takes_no_form_is_asked_by_get(
    node: Node, registry: Registry, status: int, auth: RegistryAuth, authorization: str
) -> None:
    tokens = Tokens(registry)
    tokens.refuse = {"POST": status}
    assert await manifest(node, registry, auth) == MANIFEST
    parameters = {"service": ["s"], "scope": ["repository:a/b:pull"]}
    assert [asked[0] for asked in tokens.asked] == ["POST", "GET"]
    assert tokens.asked[1][1:] == (parameters, authorization)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"token":"t"}',
        b'{"access_token":"t"}',
        b'{"token":null,"access_token":"t","expires_in":1}',
        b'{"token":"t","access_token":""}',
        b'{"Access_Token":"t"}',
        b' {"token":"t"}\n trailing',
    ],
)
async def test_tokens_by_either_name(node: Node, registry: Registry, answer: bytes) -> None:
    Tokens(registry, answer=answer)
    assert await manifest(node, registry) == MANIFEST


async def test_a_token_that_is_compressed_all_the_same(node: Node, registry: Registry) -> None:
    tokens = Tokens(registry, answer=gzip.compress(b'{"token":"t"}'))
    tokens.headers = {"Content-Encoding": "gzip"}
    assert await manifest(node, registry) == MANIFEST


@pytest.mark.parametrize(
    ("challenge", "parameters"),
    [
        ('Bearer realm="{url}/token"', {"scope": ["repository:a/b:pull"]}),
        ('Bearer realm="{url}/token",service=""', {"scope": ["repository:a/b:pull"]}),
        (
            'Bearer realm="{url}/token?x=1%2F2",scope="repository:a/b:pull repository:c:pull"',
            {"x": ["1/2"], "scope": ["repository:a/b:pull", "repository:c:pull"]},
        ),
        (
            "Bearer Realm={url}/token,Service=s",
            {"service": ["s"], "scope": ["repository:a/b:pull"]},
        ),
        (
            'Basic realm="x", Bearer realm="{url}/token",service="s"',
            {"service": ["s"], "scope": ["repository:a/b:pull"]},
        ),
        (
            'Negotiate, Bearer realm="{url}/token", Basic realm="y"',
            {"scope": ["repository:a/b:pull"]},
        ),
    ],
)
async def test_what_a_token_is_asked_for(
    node: Node, registry: Registry, challenge: str, parameters: dict[str, list[str]]
) -> None:
    tokens = Tokens(registry, challenge)
    assert await manifest(node, registry) == MANIFEST
    assert tokens.asked == [("GET", parameters, "")]


@pytest.mark.parametrize("first", ["Basic", "Bearer"])
async def test_bearer_is_preferred_wherever_it_stands(
    node: Node, registry: Registry, first: str
) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if request.headers.get("Authorization") == "Bearer t":
            return None
        both = ['Basic realm="x"', f'Bearer realm="{registry.url}/token"']
        return denied(*(both if first == "Basic" else reversed(both)))

    registry.hook = hook
    assert await manifest(node, registry, ALICE) == MANIFEST
    assert not any(value.startswith("Basic") for value in sent(registry))


async def test_a_basic_challenge_may_follow_a_bearer_token(node: Node, registry: Registry) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        authorization = request.headers.get("Authorization", "")
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if authorization.startswith("Basic"):
            return None
        if authorization:
            return denied('Basic realm="harbor"')
        return denied(f'Bearer realm="{registry.url}/token"')

    registry.hook = hook
    assert await manifest(node, registry, ALICE) == MANIFEST


async def test_tokens_that_end_are_renewed(node: Node, registry: Registry) -> None:
    """Each is good for three requests, and layers are fetched side by side."""
    layers = [b"%d" % n for n in range(8)]
    image_id = registry.image(*layers)
    used: dict[str, int] = {}

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": f"t{len(used)}"})
        authorization = request.headers.get("Authorization", "")
        used[authorization] = used.get(authorization, 0) + 1
        if authorization and used[authorization] <= 3:
            return None
        return denied(f'Bearer realm="{registry.url}/token",error="invalid_token"')

    registry.hook = hook
    assert (await node.pull(name(registry))).id == image_id


async def test_a_401_without_a_challenge_is_told(node: Node, registry: Registry) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return denied()

    registry.hook = hook
    with pytest.raises(RegistryDeniedError, match="challenge"):
        await manifest(node, registry, ALICE)
    assert sent(registry) == {""}


THIEVES = [
    'Bearer realm="{url}/steal",service="e",scope="s"',
    'Basic realm="e"',
    'Bearer realm="{registry}/token",service="s"',
    'Basic realm="e", Bearer realm="{url}/steal"',
    "",
]


@pytest.mark.parametrize("challenge", THIEVES)
@pytest.mark.parametrize("path", ["/blobs/", "/manifests/"])
async def test_who_is_redirected_to_gets_no_credentials(
    node: Node, registry: Registry, other: Registry, challenge: str, path: str
) -> None:
    """Another port is another origin, whoever it says the realm is."""
    registry.image(SMALL)

    async def thief(request: web.BaseRequest) -> web.StreamResponse | None:
        if not challenge:
            return denied()
        return denied(challenge.format(url=other.url, registry=registry.url))

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != basic("alice", "topsecret"):
            return denied('Basic realm="reg"')
        if path in request.path:
            location = {"Location": other.url + request.path}
            return web.Response(status=307, headers=location)
        return None

    other.hook, registry.hook = thief, hook
    for _ in range(2):
        with pytest.raises(RegistryDeniedError, match=f"redirects to {other.url}"):
            await node.pull(name(registry), ALICE)
    assert other.asked
    assert sent(other) == {""}
    assert "/steal" not in other.asked
    assert "/token" not in registry.asked


async def test_a_401_of_a_storage_does_not_spoil_the_registrys_token(
    node: Node, registry: Registry, other: Registry
) -> None:
    """The next blob of the same pull is authorised at once, with what was good before."""
    registry.put(SMALL)
    session = node.client.session(parse_reference(name(registry)), ALICE)
    away = True

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != basic("alice", "topsecret"):
            return denied('Basic realm="reg"')
        if away and "/blobs/" in request.path:
            return web.Response(status=307, headers={"Location": other.url + "/x"})
        return None

    async def refuse(request: web.BaseRequest) -> web.StreamResponse | None:
        return denied('Basic realm="e"')

    registry.hook, other.hook = hook, refuse
    blob = Descriptor(digest=digest(SMALL), size=len(SMALL))
    with pytest.raises(RegistryDeniedError):
        await node.client.fetch_blob(session, blob, Progress())
    away = False
    registry.headers.clear()
    await node.client.fetch_blob(session, blob, Progress())
    assert [headers.get("Authorization") for headers in registry.headers] == [
        basic("alice", "topsecret")
    ]


async def test_a_name_that_only_redirects_to_a_registry(
    node: Node, registry: Registry, other: Registry
) -> None:
    """Such names are common; where they lead, an anonymous token is asked for and sent."""
    image_id = other.image(SMALL)

    async def vanity(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=307, headers={"Location": other.url + request.path})

    async def real(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if request.headers.get("Authorization") == "Bearer t":
            return None
        return denied(f'Bearer realm="{other.url}/token"')

    registry.hook, other.hook = vanity, real
    assert (await node.pull(name(registry))).id == image_id
    assert sent(registry) == {""}
    assert other.asked.count("/token") == 1


async def test_a_form_with_a_password_follows_no_redirect(
    node: Node, registry: Registry, other: Registry
) -> None:
    tokens = Tokens(registry)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            location = {"Location": f"{other.url}/token"}
            return web.Response(status=307, headers=location)
        return await tokens(request)

    async def elsewhere(request: web.BaseRequest) -> web.StreamResponse | None:
        assert request.method == "GET"
        return web.json_response({"token": "t"})

    registry.hook, other.hook = hook, elsewhere
    assert await manifest(node, registry, ALICE) == MANIFEST
    assert sent(other) == {""}


async def test_fields_of_hosts_toml_go_to_that_host_alone(
    node: Node, registry: Registry, other: Registry, tmp_path: Path
) -> None:
    image_id = registry.image(SMALL)
    other.put(SMALL)
    server = f"127.0.0.1:{registry.port}"
    hosts_toml(
        tmp_path, server, f'server = "http://{server}"\n[header]\nX-Key = ["secret", "two"]\n'
    )

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        assert request.headers["X-Key"] == "secret, two"
        if "/blobs/" in request.path:
            return web.Response(status=302, headers={"Location": other.url + request.path})
        return None

    async def storage(request: web.BaseRequest) -> web.StreamResponse | None:
        registry_blob = request.path.rpartition("/")[2]
        return web.Response(body=registry.content[registry_blob])

    registry.hook, other.hook = hook, storage
    assert (await node.pull(name(registry))).id == image_id
    assert other.asked
    assert not any("X-Key" in headers for headers in other.headers)


async def test_a_registry_that_is_its_own_mirror_gets_its_credentials(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    """containerd's own example names registry-1.docker.io so."""
    server = f"127.0.0.1:{registry.port}"
    hosts_toml(tmp_path, server, f'[host."http://{server}"]\ncapabilities = ["pull", "resolve"]\n')

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        assert not request.query_string
        ok = request.headers.get("Authorization") == basic("alice", "topsecret")
        return None if ok else denied('Basic realm="x"')

    registry.hook = hook
    assert await manifest(node, registry, ALICE) == MANIFEST


async def test_the_token_services_words_reach_the_user(node: Node, registry: Registry) -> None:
    tokens = Tokens(registry)
    tokens.refuse = {"POST": 401}

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token" and request.method == "GET":
            return web.json_response({"details": "incorrect username or password"}, status=401)
        return await tokens(request)

    registry.hook = hook
    with pytest.raises(RegistryDeniedError, match="incorrect username or password"):
        await manifest(node, registry, ALICE)


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_a_token_service_that_fails_is_no_missing_image(
    node: Node, registry: Registry, status: int
) -> None:
    tokens = Tokens(registry)
    tokens.refuse = {"GET": status}
    with pytest.raises(RegistryError, match=f"/token: {status}"):
        await manifest(node, registry)


@pytest.mark.parametrize(
    ("auth", "text"), [(None, "imagePullSecrets"), (ALICE, "rejected the credentials")]
)
async def test_rights_that_do_not_suffice_are_not_asked_for_again(
    node: Node, registry: Registry, auth: RegistryAuth | None, text: str
) -> None:
    """Each token is a new one, as of Docker Hub for an image that is not there."""
    given = 0

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal given
        if request.path == "/token":
            given += 1
            return web.json_response({"token": f"t{given}"})
        return denied(f'Bearer realm="{registry.url}/token",error="insufficient_scope"')

    registry.hook = hook
    with pytest.raises(RegistryDeniedError, match=text):
        await manifest(node, registry, auth)
    assert given == 1
