# SPDX-License-Identifier: Apache-2.0
"""What the nearscan command does besides running: one file for each group of commands."""
