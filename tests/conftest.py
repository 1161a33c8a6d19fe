# SPDX-License-Identifier: Apache-2.0
"""Assertions of helpers read as well as those of tests."""

import pytest

pytest.register_assert_rewrite("tests.support")
