# SPDX-License-Identifier: Apache-2.0
"""What `criagent info` shows of the node itself: machine, security, registries."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from criagent.base.errors import InvalidRequestError
from criagent.image.registry import Settings
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import HandlerFacts, Handlers


def host_report() -> dict[str, Any]:
    """The machine: its name, system, kernel, processors and memory in bytes."""
    return {
        "name": os.uname().nodename,
        "os": _system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _system() -> str:
    """PRETTY_NAME of os-release(5)."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return ""


def security_report(facts: NodeFacts, handlers: Sequence[HandlerFacts]) -> dict[str, bool]:
    """What confines containers here."""
    return {
        "seccomp": facts.seccomp,
        "apparmor": facts.apparmor,
        "selinux": facts.selinux,
        "user_namespaces": any(handler.user_namespaces for handler in handlers),
        "cgroup_namespaces": facts.nsdelegate,
    }


def insecure_handlers(handlers: Handlers) -> list[str]:
    """A text for each handler whose program has known security problems."""
    return [
        f"handler {facts.name}: {facts.insecure}" for facts in handlers.configured if facts.insecure
    ]


def registry_report(settings: Settings) -> dict[str, Any]:
    """Servers by registry as hosts.toml has them, the path of registries.conf ("" = none), and
    proxies without credentials. Synchronous.
    """
    hosts, proxies = settings.hosts.directory, settings.proxies
    found: dict[str, Any] = {}
    for registry in hosts.configured():
        try:
            found[registry] = [host.url for host in hosts.hosts(registry)]
        except InvalidRequestError as exc:
            found[registry] = [f"not usable: {exc}"]
    return {
        "hosts": found,
        "registries_conf": str(settings.hosts.conf.file) if settings.hosts.conf else "",
        "http_proxy": _without_user(proxies.http),
        "https_proxy": _without_user(proxies.https),
        "no_proxy": proxies.no_proxy,
    }


def _without_user(url: str) -> str:
    """Without user and password, which any part before an @ may be."""
    try:
        split = urlsplit(url if "://" in url or not url else f"http://{url}")
    except ValueError:
        return "(malformed)"
    return split._replace(netloc=split.netloc.rpartition("@")[2]).geturl()
