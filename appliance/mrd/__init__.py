# SPDX-License-Identifier: Apache-2.0
"""MRD (ISMRMRD 1.x) streaming without sockets. Rule: no input or output here."""
