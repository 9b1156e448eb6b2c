# SPDX-License-Identifier: Apache-2.0
"""A small storage SCP: C-ECHO, and C-STORE of every SOP class, the bytes kept as they came.

Rule: success is answered only after `keep` has returned, and `keep` returns only after its fsync. Nothing that the
peer wrote becomes a path. Run it in a process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from appliance.dicom import status
from appliance.errors import StorageError

_NETWORK_TIMEOUT_S = 30.0
_MAX_ASSOCIATIONS = 16
_LONGEST_PDU = 1 << 18

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """One instance as a Part 10 file, its data set untouched."""

    data: bytes = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str  # the calling AE title


Keep = Callable[[Received], int]
Server: TypeAlias = ThreadedAssociationServer


def _on_store(event: evt.Event, keep: Keep) -> int:
    """Answer one C-STORE-RQ with a status that says what happened (PS3.4 B.2.3)."""
    request, context = event.request, event.context
    try:
        received = Received(
            event.encoded_dataset(),
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(context.transfer_syntax),
            str(event.assoc.requestor.ae_title),
        )
        return keep(received)
    except (StorageError, OSError) as error:
        log.error("C-STORE refused: %s", error)
        return status.OUT_OF_RESOURCES
    except (AttributeError, ValueError, TypeError) as error:  # a request that lacks its UIDs or its data set
        log.error("C-STORE cannot be understood: %s", type(error).__name__)
        return status.CANNOT_UNDERSTAND


def serve(bind: str, port: int, ae_title: str, keep: Keep) -> Server:
    """Listen in threads of this process; port 0 takes a free one (`.server_address[1]`), `.shutdown()` ends it."""
    logging.getLogger("pynetdicom").setLevel(logging.WARNING)  # it writes a line for each instance
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # or one unknown SOP class aborts the whole association
    ae = AE(ae_title=ae_title)
    ae.maximum_associations = _MAX_ASSOCIATIONS
    ae.maximum_pdu_size = _LONGEST_PDU
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = _NETWORK_TIMEOUT_S
    ae.add_supported_context(Verification)
    handlers = [(evt.EVT_C_STORE, _on_store, [keep])]
    return ae.start_server((bind, port), block=False, evt_handlers=handlers)
