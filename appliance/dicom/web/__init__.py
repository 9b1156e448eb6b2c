# SPDX-License-Identifier: Apache-2.0
"""DICOMweb for others: STOW-RS in, QIDO-RS and WADO-RS out of what the buffer holds (PS3.18)."""
