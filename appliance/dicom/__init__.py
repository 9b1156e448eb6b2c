# SPDX-License-Identifier: Apache-2.0
"""Everything that speaks DICOM; the only package that imports pydicom."""
