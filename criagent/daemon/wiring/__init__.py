# SPDX-License-Identifier: Apache-2.0
"""Puts the parts of the daemon together, package by package. Each part gets just what it needs.

Every `build` has local variables only, so the type checker sees that nothing is used before it is
made.
"""
