# SPDX-License-Identifier: Apache-2.0
"""One file per stage; the file name is its name in the YAML."""
