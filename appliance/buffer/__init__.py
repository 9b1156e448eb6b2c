# SPDX-License-Identifier: Apache-2.0
"""The durable buffer: one SQLite database and object files; the only place that knows SQLite."""

from appliance.buffer.buffer import Buffer, InstanceWriter
from appliance.buffer.records import Delivery, Job, Kept, NewInstance, NewJob
from appliance.buffer.segments import ObjectError

__all__ = ["Buffer", "Delivery", "InstanceWriter", "Job", "Kept", "NewInstance", "NewJob", "ObjectError"]
