# SPDX-License-Identifier: Apache-2.0
"""CT: noise and faults of images in Hounsfield units.

Rule: pure mathematics on arrays; no I/O, no Holoscan, no DICOM.
"""
