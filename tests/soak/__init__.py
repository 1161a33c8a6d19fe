# SPDX-License-Identifier: Apache-2.0
"""Thousands of pods and short containers, with and without kills at random: `make soak`."""
