# SPDX-License-Identifier: Apache-2.0
"""Validators of adjustments: the default one, which is configured, and plugins that subscribe."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import yaml

from criagent._proto import nri_pb2
from criagent.base.errors import AgentError, NotPermittedError, UnavailableError
from criagent.config.nri_section import DefaultValidator
from criagent.nri import events
from criagent.nri.creation import Creation
from criagent.nri.owners import Field
from criagent.nri.plugin import Plugin

REQUIRED_PLUGINS = "required-plugins.noderesource.dev"

_LIST_MOST = 16 << 10  # characters of an annotation
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # as Go reads them
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


class Validation:
    """Validates what plugins made of a container before it is used."""

    def __init__(self, configured: DefaultValidator) -> None:
        self._configured = configured

    @property
    def enabled(self) -> bool:
        """Whether the default validator is on; it may ask for plugins when there are none."""
        return self._configured.enable

    async def validate(self, creation: Creation, plugins: Sequence[Plugin]) -> None:
        """Raises AgentError with the reason of a validator that rejects the adjustment, and
        UnavailableError when a validator fails.
        """
        if self._configured.enable:
            problem = _problem(self._configured, creation, plugins)
            if problem:
                raise NotPermittedError(f"NRI's default validator: {problem}")
        validators = [plugin for plugin in plugins if plugin.hears(events.VALIDATE)]
        if not validators:
            return
        request = nri_pb2.ValidateContainerAdjustmentRequest(
            pod=creation.request.pod,
            container=creation.pristine,
            adjust=creation.adjust,
            update=creation.updates.all,
            owners=creation.owners.message(),
            plugins=[
                nri_pb2.PluginInstance(name=plugin.identity.name, index=plugin.identity.index)
                for plugin in plugins
            ],
        )
        await asyncio.gather(*(_validate(plugin, request) for plugin in validators))


async def _validate(plugin: Plugin, request: nri_pb2.ValidateContainerAdjustmentRequest) -> None:
    answer = await plugin.ask(events.VALIDATE, request)
    if isinstance(answer, nri_pb2.ValidateContainerAdjustmentResponse):
        if answer.reject:
            reason = answer.reason or "it gives no reason"
            raise AgentError(f"NRI validator {plugin} rejected the adjustment: {reason}")
    elif plugin.mask & events.VALIDATE.bit:
        raise UnavailableError(f"NRI validator {plugin} failed, so nothing is created")


def _problem(rules: DefaultValidator, creation: Creation, plugins: Sequence[Plugin]) -> str:
    """What the default validator says, "" = nothing."""
    owners, container = creation.owners, creation.request.container
    if rules.reject_oci_hook_adjustment and (who := owners.owner(container.id, Field.OciHooks)):
        return f"{who} may not inject OCI hooks"
    if found := _seccomp(rules, creation):
        return found
    if rules.reject_namespace_adjustment and (
        who := _names(owners.keyed(container.id, Field.Namespace))
    ):
        return f"{who} may not change namespaces"
    if found := _required(rules, creation, plugins):
        return found
    if rules.reject_sysctl_adjustment and (who := _names(owners.keyed(container.id, Field.Sysctl))):
        return f"{who} may not change sysctls"
    return ""


def _seccomp(rules: DefaultValidator, creation: Creation) -> str:
    container = creation.pristine
    who = creation.owners.owner(container.id, Field.SeccompPolicy)
    if not who:
        return ""
    kind = nri_pb2.SecurityProfile.UNCONFINED
    if container.linux.HasField("seccomp_profile"):
        kind = container.linux.seccomp_profile.profile_type
    rejected, what = {
        nri_pb2.SecurityProfile.UNCONFINED: (
            rules.reject_unconfined_seccomp_adjustment,
            "an unconfined container",
        ),
        nri_pb2.SecurityProfile.RUNTIME_DEFAULT: (
            rules.reject_runtime_default_seccomp_adjustment,
            "a container with the default profile",
        ),
        nri_pb2.SecurityProfile.LOCALHOST: (
            rules.reject_custom_seccomp_adjustment,
            "a container with a profile of its own",
        ),
    }[kind]
    return f"{who} may not change the seccomp policy of {what}" if rejected else ""


def _required(rules: DefaultValidator, creation: Creation, plugins: Sequence[Plugin]) -> str:
    pod, name = creation.request.pod, creation.request.container.name
    if key := rules.tolerate_missing_plugins_annotation:
        value = effective(pod.annotations, key, name)
        if value in _TRUE:
            return ""
        if value is not None and value not in _FALSE:
            return f"annotation {key} has the value {value[:80]!r} instead of true or false"
    required = list(rules.required_plugins)
    value = effective(pod.annotations, REQUIRED_PLUGINS, name)
    if value is not None:
        listed = _listed(value)
        if listed is None:
            return f"annotation {REQUIRED_PLUGINS} is not a list of names: {value[:200]!r}"
        required += listed
    there = {str(plugin) for plugin in plugins} | {plugin.identity.name for plugin in plugins}
    missing = [plugin for plugin in dict.fromkeys(required) if plugin not in there]
    if not missing:
        return ""
    return f"required NRI plugins are not there: {', '.join(missing)}; start them"


def effective(annotations: Mapping[str, str], key: str, container: str) -> str | None:
    """An annotation of a pod for one of its containers: the container's own, or the pod's."""
    for name in (f"{key}/container.{container}", f"{key}/pod", key):
        if name in annotations:
            return annotations[name]
    return None


def _listed(text: str) -> list[str] | None:
    if len(text) > _LIST_MOST:
        return None
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if whole else None


def _names(owners: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(owner.removeprefix("-") for owner in owners.values()))
