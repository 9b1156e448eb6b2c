# SPDX-License-Identifier: Apache-2.0
"""The acceptor's states against pynetdicom's own copy of PS3.8's tables."""

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from appliance.dicom import upper_layer
from appliance.dicom.upper_layer import UpperLayer
from appliance.errors import PeerError

OURS = ("Sta1", "Sta2", "Sta3", "Sta6", "Sta8", "Sta13")
REQUESTOR_ONLY = {"Evt1", "Evt2", "Evt11"}  # what only our own side would ask for


@pytest.mark.parametrize("state", OURS)
@pytest.mark.parametrize("event", [f"Evt{n}" for n in range(1, 20) if f"Evt{n}" not in REQUESTOR_ONLY])
def test_every_transition_is_the_standards(state, event):
    machine = UpperLayer()
    machine.state = state
    action = TRANSITION_TABLE.get((event, state))
    if action is None:
        with pytest.raises(PeerError, match=f"{event} cannot happen in {state}"):
            machine.take(event)
        return
    assert machine.take(event) == action
    if action != "AE-6":  # the standard leaves Sta3 or Sta13 to the acceptor's judgement
        assert machine.state == ACTIONS[action][2]


def test_no_event_leads_out_of_the_acceptors_states():
    assert set(upper_layer._NEXT.values()) <= set(OURS)
