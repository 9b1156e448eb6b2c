# SPDX-License-Identifier: Apache-2.0
"""Ultrasound: speckle and faults of B-mode images.

Rule: pure mathematics on arrays; no I/O, no Holoscan, no DICOM.
"""
