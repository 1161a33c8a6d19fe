# SPDX-License-Identifier: Apache-2.0
"""The storage driver devmapper: a thin volume for each snapshot, in one thin pool.

`pool.py` has the pool, `volumes.py` what is in it, `driver.py` the driver that mounts them.
"""
