"""The fixtures of `conftest_vm`, which tests import by that name."""

from tests.vm.suite.conftest_vm import cri, images, nothing_leaks, pods

__all__ = ["cri", "images", "nothing_leaks", "pods"]
