# SPDX-License-Identifier: Apache-2.0
"""The durable buffer: one SQLite database and object files; the only place that knows SQLite."""

from appliance.buffer.buffer import Buffer
from appliance.buffer.objects import ObjectError
from appliance.buffer.records import Delivery, Job, Kept, NewInstance, NewJob

__all__ = ["Buffer", "Delivery", "Job", "Kept", "NewInstance", "NewJob", "ObjectError"]
