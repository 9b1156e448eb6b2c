# SPDX-License-Identifier: Apache-2.0
"""What the detection of acquisition faults has in common, whatever the modality.

A detector of one modality judges single frames; votes, events, and what a site's commissioning learnt are here.
"""
