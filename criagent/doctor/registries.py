# SPDX-License-Identifier: Apache-2.0
"""What pulls need beside a registry: registries.conf, credentials, signature policies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.config import registries_conf
from criagent.config.sections import Config
from criagent.doctor.finding import Finding, fine, warning
from criagent.image.hosts import auth_file, helpers
from criagent.image.policy.document import Policy, SigstoreSigned, parse_policy

_OTHERS = 0o077  # bits of a mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryFacts:
    """What is wrong with each file or program; "" = nothing."""

    conf: str = ""
    credentials: str = ""
    # By credential helper: the file that names it, and what is wrong with it.
    helpers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    auth_dir_mode: int | None = 0o700  # None = it does not exist
    policies: Mapping[str, str] = field(default_factory=dict)  # by file
    verifiers: int | None = None  # programs of verifier_dir, None = the directory is missing


def read(config: Config) -> RegistryFacts:
    """Read the files of this node; no program is run."""
    registry = config.registry
    conf, of_conf = _conf(registry.registries_conf)
    credentials, of_file = _credentials(registry.docker_config)
    return RegistryFacts(
        conf=conf,
        credentials=credentials,
        helpers={
            name: (file, helpers.located(name)[1])
            for file, names in (
                (registry.registries_conf, of_conf),
                (str(registry.docker_config), of_file),
            )
            for name in names
        },
        auth_dir_mode=_mode(registry.namespaced_auth_dir),
        policies={str(file): _policy(file) for file in _policies(config)},
        verifiers=_verifiers(registry.verifier_dir),
    )


def judge(facts: RegistryFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    registry = config.registry
    if registry.registries_conf:
        if facts.conf:
            cure = "repair it, or take registry.registries_conf out of the configuration"
            yield warning("registries.conf", f"every pull fails: {facts.conf}", cure)
        else:
            yield fine("registries.conf", registry.registries_conf)
    if facts.credentials:
        yield warning("credentials", facts.credentials, "repair the file or remove it")
    for program, (file, problem) in facts.helpers.items():
        name = f"credential helper {program}"
        if problem:
            what = f"named by {file}: {problem.partition('; ')[0]}"
            cure = problem.partition("; ")[2]
            yield warning(name, what, cure or f"repair docker-credential-{program}")
        else:
            yield fine(name, f"docker-credential-{program} is installed")
    yield from _judged_directory(facts, registry.namespaced_auth_dir)
    for policy, problem in facts.policies.items():
        if problem:
            text = f"{policy} rejects images that it should admit: {problem}"
            yield warning("signature policy", text, "repair the file, or install the keys it names")
        else:
            yield fine("signature policy", policy)
    if registry.verifier_dir and not facts.verifiers:
        yield warning(
            "image verifiers",
            f"registry.verifier_dir {registry.verifier_dir} has no program, so every image is "
            "admitted",
            "install the program there, or take the key out of the configuration",
        )


def _judged_directory(facts: RegistryFacts, folder: str) -> Iterator[Finding]:
    if not folder:
        return
    if facts.auth_dir_mode is None:
        text = f"registry.namespaced_auth_dir {folder} does not exist: no pull finds credentials"
        yield warning("auth files", text, f"run install -d -m 0700 {folder}")
    elif facts.auth_dir_mode & _OTHERS:
        text = f"others than root can reach the credentials in {folder}"
        yield warning("auth files", text, f"run chmod 0700 {folder}")


def _conf(file: str) -> tuple[str, Sequence[str]]:
    """What is wrong with registries.conf, and the helpers that it names."""
    if not file:
        return "", ()
    try:
        named = registries_conf.read(Path(file)).helpers
    except OSError as error:
        return f"{file}: {error.strerror}", ()
    except ValueError as error:
        return str(error), ()
    return "", [name for name in named if name != registries_conf.AUTH_FILES]


def _credentials(file: Path) -> tuple[str, Sequence[str]]:
    """What is wrong with the file of credentials, and the helpers that it names."""
    if os.geteuid() and not os.access(file, os.R_OK):  # another finding says: run as root
        return "", ()
    try:
        found = auth_file.read(file)
    except AgentError as error:
        return str(error).removesuffix("; repair it or remove it"), ()
    return "", found.programs()


def _mode(folder: str) -> int | None:
    try:
        return Path(folder).stat().st_mode & 0o777 if folder else None
    except OSError:
        return None


def _policies(config: Config) -> list[Path]:
    registry = config.registry
    files = [Path(registry.signature_policy)] if registry.signature_policy else []
    if registry.signature_policy_dir:
        files += sorted(Path(registry.signature_policy_dir).glob("*.json"))
    return files


def _policy(file: Path) -> str:
    try:
        policy = parse_policy(file.read_bytes())
        for requirement in _signed(policy):
            from criagent.image.policy.sigstore import Trust  # large, and few nodes have one

            Trust.of(requirement)
    except OSError as error:
        return f"{error.filename or file}: {error.strerror}"
    except (ValueError, AgentError) as error:
        return str(error)
    return ""


def _signed(policy: Policy) -> Iterator[SigstoreSigned]:
    scopes = [policy.default]
    for by_name in policy.transports.values():
        scopes += by_name.values()
    for requirements in scopes:
        yield from (one for one in requirements if isinstance(one, SigstoreSigned))


def _verifiers(folder: str) -> int | None:
    try:
        return sum(1 for _ in Path(folder).iterdir()) if folder else None
    except OSError:
        return None
