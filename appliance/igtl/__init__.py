# SPDX-License-Identifier: Apache-2.0
"""OpenIGTLink, header versions 1 to 3, as bytes in and messages out.

Rule: no sockets here. A message from the network is never trusted: its length is checked before anything is
kept, its CRC before anything is decoded.

Reference: Tokuda et al., doi:10.1002/rcs.274; http://openigtlink.org/developers/spec.html
"""

from appliance.igtl.connection import Connection, Skipped
from appliance.igtl.messages import Capability, Image, Message, Query, Status, Text, Transform, encode

__all__ = [
    "Capability",
    "Connection",
    "Image",
    "Message",
    "Query",
    "Skipped",
    "Status",
    "Text",
    "Transform",
    "encode",
]
