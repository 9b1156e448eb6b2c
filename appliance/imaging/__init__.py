# SPDX-License-Identifier: Apache-2.0
"""Mathematics on finished images. Rule: no input or output here."""
