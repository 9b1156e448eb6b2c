# SPDX-License-Identifier: Apache-2.0
"""nearscan: the box next to the scanner."""

__version__ = "0.1.0"
