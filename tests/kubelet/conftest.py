"""The fixtures of `kubelet_fixtures`, which the VM's suites import by that name."""

from tests.kubelet.kubelet_fixtures import (
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)

__all__ = ["host_directory", "images", "kubelet", "nothing_leaks", "session_kubelet"]
