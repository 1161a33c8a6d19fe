# SPDX-License-Identifier: Apache-2.0
"""Configurations of containerd, CRI-O, Docker and containers/image, read and written as criagent's.

Each module knows one file format; `migration.py` is what they fill in.
"""
