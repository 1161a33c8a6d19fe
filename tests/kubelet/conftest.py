# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests.support.kubelet_fixtures, which the VM's suites import, too."""

from tests.support.kubelet_fixtures import (
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)

__all__ = ["host_directory", "images", "kubelet", "nothing_leaks", "session_kubelet"]
