# SPDX-License-Identifier: Apache-2.0
"""One file per source; the file name is its name in the YAML."""
