# SPDX-License-Identifier: Apache-2.0
"""Pictures of volumes: ray casting, maximum intensity, slices. Pure functions on arrays, compiled by numba.

Rule: no I/O, no sockets, no threads here. Compiled code holds no GIL while it runs.
"""
