# SPDX-License-Identifier: Apache-2.0
"""Command sets and PDUs, against pynetdicom's own decoders and against garbage."""

from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ABORT_RQ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF

from appliance.dicom import dimse, negotiation
from appliance.errors import PeerError

MR = "1.2.840.10008.5.1.4.1.1.4"


def test_commands_say_what_the_standard_asks():
    store = decode(BytesIO(dimse.store_rq(7, MR, "1.2.3")), True, True)
    assert (store.CommandField, store.MessageID, store.Priority) == (0x0001, 7, 0)
    assert (store.AffectedSOPClassUID, store.AffectedSOPInstanceUID) == (MR, "1.2.3")
    assert store.CommandDataSetType != 0x0101
    assert store.CommandGroupLength == len(dimse.store_rq(7, MR, "1.2.3")) - 12
    echo = decode(BytesIO(dimse.echo_rq(9)), True, True)
    assert (echo.CommandField, echo.MessageID, echo.CommandDataSetType) == (0x0030, 9, 0x0101)


@given(data=st.binary(max_size=200), longest=st.integers(7, 64), command=st.booleans())
def test_pdus_carry_the_bytes_within_the_peers_limit(data, longest, command):
    pieces = list(dimse.p_data(5, data, longest, command=command))
    got, ends = b"", []
    for header, piece in zip(pieces[::2], pieces[1::2], strict=True):
        pdu = P_DATA_TF()
        pdu.decode(bytes(header) + bytes(piece))
        (value,) = pdu.presentation_data_value_items
        assert len(header) + len(piece) - 6 <= longest
        assert value.presentation_context_id == 5
        control = value.presentation_data_value[0]
        assert bool(control & 1) == command
        ends.append(bool(control & 2))
        got += value.presentation_data_value[1:]
    assert got == data
    assert ends == [False] * (len(ends) - 1) + [True]


@pytest.mark.parametrize(
    ("raw", "pdu"), [(dimse.RELEASE_RQ_PDU, A_RELEASE_RQ()), (dimse.RELEASE_RP_PDU, A_RELEASE_RP())]
)
def test_a_release_is_encoded_as_pynetdicom_does(raw, pdu):
    assert raw == pdu.encode()


@pytest.mark.parametrize(("raw", "source"), [(dimse.ABORT_PDU, 0), (dimse.PROVIDER_ABORT_PDU, 2)])
def test_an_abort_says_whose_it_is(raw, source):
    pdu = A_ABORT_RQ()
    pdu.source, pdu.reason_diagnostic = source, 0
    assert raw == pdu.encode()


@given(data=st.binary(max_size=300))
def test_garbage_raises_peer_error_and_nothing_else(data):
    for read in (dimse.read_command, lambda d: list(dimse.fragments(d)), lambda d: negotiation.accepted(b"\x02\0" + d)):
        with suppress(PeerError):
            read(data)
    assert isinstance(negotiation.rejection(data), str)


def test_a_response_to_another_message_is_not_ours():
    response = dimse._command(dimse._us(0x0100, 0x8001) + dimse._us(0x0120, 3) + dimse._us(0x0900, 0))
    assert dimse.response_status(response, dimse.C_STORE_RQ, 3) == 0
    with pytest.raises(PeerError, match=r"expected the response 0x8001 to message 4, got \[32769, 3\]"):
        dimse.response_status(response, dimse.C_STORE_RQ, 4)
    with pytest.raises(PeerError, match=r"a response lacks \(0000,0900\)"):
        dimse.response_status(response[:-10], dimse.C_STORE_RQ, 3)
