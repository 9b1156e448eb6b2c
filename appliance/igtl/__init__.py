# SPDX-License-Identifier: Apache-2.0
"""OpenIGTLink, header versions 1 to 3, as bytes in and messages out.

Rule: no sockets here. A message from the network is never trusted: its length is checked before anything is
kept, its CRC before anything is decoded.

Reference: Tokuda et al., doi:10.1002/rcs.274; http://openigtlink.org/developers/spec.html
"""

from appliance.igtl.connection import Connection, Skipped
from appliance.igtl.geometry import Attribute, Cells, Point, Points, PolyData, Trajectories, Trajectory
from appliance.igtl.images import Image, ImageInfo, ImageInfos, ImagePart, LabelInfo, LabelInfos, paste
from appliance.igtl.messages import Bind, Content, Message, encode
from appliance.igtl.queries import Capability, Pace, Query, Reply
from appliance.igtl.tracking import Position, QuaternionData, QuaternionTool, Tool, TrackingData, Transform
from appliance.igtl.words import Sensor, Status, Text

__all__ = [
    "Attribute",
    "Bind",
    "Capability",
    "Cells",
    "Connection",
    "Content",
    "Image",
    "ImageInfo",
    "ImageInfos",
    "ImagePart",
    "LabelInfo",
    "LabelInfos",
    "Message",
    "Pace",
    "Point",
    "Points",
    "PolyData",
    "Position",
    "QuaternionData",
    "QuaternionTool",
    "Query",
    "Reply",
    "Sensor",
    "Skipped",
    "Status",
    "Text",
    "Tool",
    "TrackingData",
    "Trajectories",
    "Trajectory",
    "Transform",
    "encode",
    "paste",
]
