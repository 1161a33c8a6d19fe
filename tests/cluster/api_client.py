# SPDX-License-Identifier: Apache-2.0
"""The API server over HTTPS: a request a call, and waiting by its watch."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]

_MERGE = "application/strategic-merge-patch+json"
GROUPS = {
    "deployments": "apis/apps/v1",
    "daemonsets": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "endpointslices": "apis/discovery.k8s.io/v1",
}


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """Requests as one user."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, limit_s: float) -> None:
        self._host, self._port, self._context = host, port, context
        self.limit_s = limit_s
        self.headers: dict[str, str] = {}

    def text(self, method: str, path: str, body: Json | None = None, kind: str = "") -> str:
        """The body of the answer. Raises ApiError, OSError."""
        with self._answer(method, path, body, kind, self.limit_s) as answer:
            return answer.read().decode()

    def get(self, path: str) -> Json:
        document: Json = json.loads(self.text("GET", path))
        return document

    def post(self, path: str, body: Json) -> Json:
        document: Json = json.loads(self.text("POST", path, body))
        return document

    def patch(self, path: str, body: Json) -> Json:
        document: Json = json.loads(self.text("PATCH", path, body, _MERGE))
        return document

    def delete(self, path: str) -> None:
        """Delete, with the kind's own grace; what is gone already is no error."""
        try:
            self.text("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    def items(self, path: str) -> list[Json]:
        """What a list holds."""
        found: list[Json] = self.get(path)["items"]
        return found

    def until(
        self, path: str, holds: Callable[[list[Json]], object], what: str, limit_s: float = 0
    ) -> list[Json]:
        """The objects of a list, once `holds` of them; AssertionError naming `what`."""
        end = time.monotonic() + (limit_s or self.limit_s)
        kind = "&" if "?" in path else "?"
        while True:
            listed = self.get(path)
            objects = {one["metadata"]["uid"]: one for one in listed["items"]}
            if holds(list(objects.values())):
                return list(objects.values())
            left = end - time.monotonic()
            shown = json.dumps([one.get("status") for one in objects.values()])[-3000:]
            assert left > 0, f"{what} did not happen; last seen: {shown}"
            version = listed["metadata"]["resourceVersion"]
            watch = f"{path}{kind}watch=1&resourceVersion={version}&timeoutSeconds={int(left) + 1}"
            try:
                for event in self._events(watch, left):
                    thing = event["object"]
                    if event["type"] == "DELETED":
                        objects.pop(thing["metadata"]["uid"], None)
                    elif event["type"] in {"ADDED", "MODIFIED"}:
                        objects[thing["metadata"]["uid"]] = thing
                    else:
                        break  # the version is too old: list again
                    if holds(list(objects.values())):
                        return list(objects.values())
            except TimeoutError:
                continue

    def _events(self, path: str, limit_s: float) -> Iterator[Json]:
        with self._answer("GET", path, None, "", limit_s) as answer:
            while line := answer.readline():
                yield json.loads(line)

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Json | None, kind: str, limit_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=limit_s, context=self._context
        )
        try:
            headers = {"Content-Type": kind or "application/json", **self.headers}
            data = None if body is None else json.dumps(body)
            connection.request(method, f"/{path.lstrip('/')}", data, headers)
            answer = connection.getresponse()
            if answer.status >= 300:
                raise ApiError(answer.status, answer.read().decode(errors="replace"))
            yield answer
        finally:
            connection.close()


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """Where objects of a kind are: `pods`, `deployments`, …"""
    group = GROUPS.get(kind, "api/v1")
    return f"{group}/namespaces/{namespace}/{kind}" + (f"/{name}" if name else "")
