# SPDX-License-Identifier: Apache-2.0
"""MRI: pure mathematics on arrays.

Rule: no I/O, no Holoscan, no DICOM.
"""
