# SPDX-License-Identifier: Apache-2.0
"""Checks of the whole configuration: what several keys get wrong together, or in this node."""

from __future__ import annotations

import os
import re
from pathlib import Path

from criagent.base.tokens import read_tokens
from criagent.config.checks import is_loopback
from criagent.config.defaults.workloads import workload_problems
from criagent.config.handler_values import handler_problems
from criagent.config.runtime_section import Runtime
from criagent.config.sections import Config, Telemetry
from criagent.config.storage_drivers import ONE_POOL, canonical, of_handler
from criagent.config.storage_section import Storage

_PLATFORM = re.compile(r"linux/[a-z0-9_]{1,40}(/v[0-9.]{1,10})?")  # containerd/platforms, Parse

# The keys, and a text on the first of them.
Contradiction = tuple[tuple[str, ...], str]


def contradictions(config: Config) -> list[Contradiction]:
    """Every problem of values that are right one by one."""
    storage = config.storage
    found = _of_runtime(config.runtime) + _of_metrics(config.telemetry)
    found += _of_certificate("streaming", ("tls_cert", "tls_key"), config.streaming)
    found += _of_snapshotters(config.runtime, storage)
    on_cni = config.network.backend == "cni"
    for name, handler in config.runtime.handlers.items():
        for key, text in handler_problems(handler, config.runtime, cni=on_cni):
            of_handler = ("runtime.handlers", f"runtime.handlers.{name}", "network.backend")
            found.append((of_handler, f"{name}.{key}: {text}"))
    for name, workload in config.runtime.workloads.items():
        for key, text in workload_problems(workload):
            of_workload = ("runtime.workloads", f"runtime.workloads.{name}")
            found.append((of_workload, f"{name}.{key}: {text}"))
    if config.telemetry.cadvisor_socket == str(storage.socket):
        keys = ("telemetry.cadvisor_socket", "storage.socket")
        found.append((keys, "is the socket of the CRI; set another path"))
    if storage.root == storage.run_dir:
        keys = ("storage.run_dir", "storage.root")
        found.append((keys, "is also the root directory; set a separate directory on tmpfs"))
    if storage.containers_root:
        found += _of_containers_root(storage)
    return found


def _of_containers_root(storage: Storage) -> list[Contradiction]:
    found: list[Contradiction] = []
    own, driver = Path(os.path.normpath(storage.containers_root)), canonical(storage.driver)
    if driver in ONE_POOL:
        text = (
            f"the storage driver {driver} makes writable layers out of the layers of images, which "
            'cannot leave their file system or pool; remove the key, or set storage.driver = "'
            'overlay"'
        )
        found.append((("storage.containers_root", "storage.driver"), text))
    inside = own.relative_to(storage.root).parts if own.is_relative_to(storage.root) else None
    if inside == () or (inside and inside[0].startswith("snapshots")):
        text = "is a directory that the agent has for layers of images; set another one"
        found.append((("storage.containers_root", "storage.root"), text))
    if own.is_relative_to(storage.run_dir):
        text = "is in storage.run_dir, which a reboot clears; set a directory on a disk"
        found.append((("storage.containers_root", "storage.run_dir"), text))
    if driver == "native" and storage.native.reflink == "always":
        text = (
            '"always" does not go with storage.containers_root: files of different file systems '
            'cannot share blocks; set "auto"'
        )
        found.append((("storage.native.reflink", "storage.containers_root"), text))
    return found


def _of_runtime(runtime: Runtime) -> list[Contradiction]:
    found: list[Contradiction] = []
    if runtime.default_handler not in runtime.handlers:
        keys = ("runtime.default_handler", "runtime.handlers")
        found.append((keys, f"{runtime.default_handler!r} is not a handler"))
    if runtime.nofile_soft > runtime.nofile_hard:
        keys = ("runtime.nofile_soft", "runtime.nofile_hard")
        found.append((keys, f"{runtime.nofile_soft} is above nofile_hard {runtime.nofile_hard}"))
    return found


def _of_snapshotters(runtime: Runtime, storage: Storage) -> list[Contradiction]:
    found: list[Contradiction] = []
    for name, handler in runtime.handlers.items():
        key, driver = f"runtime.handlers.{name}.snapshotter", canonical(handler.snapshotter)
        try:
            of_handler(driver)
        except ValueError as exc:
            found.append(((key,), str(exc)))
            continue
        if handler.platform and (problem := _platform_problem(runtime, name)):
            found.append(((f"runtime.handlers.{name}.platform",), problem))
        if not driver or driver == canonical(storage.driver):
            continue
        if name == runtime.default_handler:
            text = f"{name} is the default handler, which has storage.driver; set that key"
            found.append(((key, "storage.driver"), text))
        elif storage.containers_root and driver in ONE_POOL:
            text = (
                f"the storage driver {driver} makes writable layers out of the layers of images, "
                "which cannot leave their file system or pool; remove one of the keys"
            )
            found.append(((key, "storage.containers_root"), text))
    return found


def _platform_problem(runtime: Runtime, name: str) -> str:
    """What is wrong with the platform of the handler `name`; "" = nothing."""
    if name == runtime.default_handler:
        return f"{name} is the default handler, which has the node's platform; remove the key"
    platform = runtime.handlers[name].platform
    if _PLATFORM.fullmatch(platform) is None:
        return f"must be linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT, not {platform[:80]!r}"
    return ""


def _of_metrics(telemetry: Telemetry) -> list[Contradiction]:
    names = ("metrics_tls_cert", "metrics_tls_key")
    found = _of_certificate("telemetry", names, telemetry)
    file = telemetry.metrics_token_file
    if file and (problem := _no_token(Path(file))):
        found.append((("telemetry.metrics_token_file",), problem))
    if is_loopback(telemetry.metrics_address) or telemetry.metrics_insecure:
        return found
    missing = [
        f"telemetry.{name}"
        for name in ("metrics_tls_cert", "metrics_token_file")
        if not getattr(telemetry, name)
    ]
    if missing:
        text = (
            f"{telemetry.metrics_address} can be reached from other machines: set "
            f"{' and '.join(missing)}, or telemetry.metrics_insecure = true to let everyone read "
            "the metrics and the node page"
        )
        found.append((("telemetry.metrics_address", *missing), text))
    return found


def _no_token(path: Path) -> str:
    try:
        read_tokens(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path}: {error}"
    return ""


def _of_certificate(section: str, names: tuple[str, str], values: object) -> list[Contradiction]:
    """The keys of a certificate and of its private key."""
    found: list[Contradiction] = []
    files = [str(getattr(values, name)) for name in names]
    if bool(files[0]) != bool(files[1]):
        keys = tuple(f"{section}.{name}" for name in names)
        found.append((keys, "set both the certificate and its key, or neither"))
    for name, file in zip(names, files, strict=True):
        if file and (problem := _unreadable(Path(file))):
            found.append(((f"{section}.{name}",), problem))
    return found


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
