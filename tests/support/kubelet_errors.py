# SPDX-License-Identifier: Apache-2.0
"""What the kubelet logs as errors, and why: none may be left unexplained."""

from __future__ import annotations

import os
import re

# A part of the line, and its reason. The last ones are of this ground, not of any runtime.
_EXPLAINED = {
    r"connect: connection refused|error reading from server: EOF|code = Unavailable": "agent gone",
    r"code = Canceled desc = CANCELLED|container events stream is closed": "the agent ends",
    r"Failed to ensure image.*ImageInspectError": "the same",
    r"Failed to stop sandbox\"": "the line after one that names the reason",
    r"code = Canceled desc = context canceled": "the kubelet was stopped, or gave a probe up",
    r"broadcaster already stopped": "the same",
    r"no imagefs label for configured runtime": "it asks for a label of CRI-O's (troubleshooting)",
    r"invalid capacity 0 on image filesystem": "before its cAdvisor's first look (troubleshooting)",
    r"failed to get rootFs info: unable to find data in memory cache": "the same",
    r"Image garbage collection failed.*Insufficient free disk space": "a threshold that none meets",
    r"PLEG is not healthy: pleg has yet to be successful": "it has only just started",
    r"container runtime status check may not have completed yet": "the same",
    r"checkpoint is not found": "its first start",
    r"(?:ContainerStatus from runtime service failed|[Ff]ailed to get container status)"
    r".*code = NotFound": "its collectors race",
    r"(?:Failed to remove container|Image garbage collection failed).*code = NotFound": "the same",
    r"ExecSync cmd from runtime service failed.*timed out after": "a probe that hangs",
    r"ExecSync cmd from runtime service failed.*is exited, not running": "its container just ended",
    r"Skipping pod synchronization.*container runtime is down": "agent gone for half a minute (VM)",
    r"(?:ReopenContainerLog|Failed to rotate log|reopen container log failed)"
    r".*is not running; its log is not reopened": "ended",
    # Not of commands' cgroups, which it is to leave alone.
    r"Partial failure issuing cadvisor.ContainerInfoV2(?!.*/exec-)": "before its first look at one",
    r"Could not get metadata.*no such file|Unable to process watch event": "manifests that went",
    r"PostStartHook": "a hook that fails",
    r"with CrashLoopBackOff:": "a container that fails",
    r"registry.k8s.io/not/there|default/missing-": "an image that is not",
    r"runAsNonRoot and image will run as root": "a pod that is refused",
    r"cannot evict a critical pod|no pods are active to evict": "it spares static pods",
    r" (?:kubelet_volumes|nestedpendingoperations|reconciler)\.go:": "volumes are its own affair",
    r"failed to check if node is newer": "it has no API server",
    r"Missing actuated pod level resource record": "static pods are in no record of resources",
    # With EventedPLEG it may look at its pods before its first list, and want to make them anew.
    # That it makes a container anew while it runs on is another thing, and not allowed.
    r"sandbox name .* is taken by": "the runtime refuses a second sandbox",
    r"Failed to set rlimit|apply oom score": "the node lacks CAP_SYS_RESOURCE",
    r"OOM events will not be reported": "its cAdvisor reads the kernel log; others read it too",
    r"Housekeeping took longer than expected": "the machine is busy",
}

# Events come no more when the agent goes: the kubelet then wants to have looked within three
# minutes, though with events it looks every five.
_WITH_EVENTS = {r"PLEG is not healthy: pleg was last seen active": "it looks at once"}


def unexplained(log: str) -> list[str]:
    """Lines of errors in a kubelet's log that no pattern of `_EXPLAINED` knows."""
    gates = os.environ.get("CRIAGENT_KUBELET_GATES", "")
    patterns = {**_EXPLAINED, **(_WITH_EVENTS if "EventedPLEG" in gates else {})}
    known = re.compile("|".join(patterns))
    lines = [line for line in log.splitlines() if re.match(r"E\d{4} ", line)]
    return [line for line in lines if not known.search(line)]
