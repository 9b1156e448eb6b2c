# SPDX-License-Identifier: Apache-2.0
"""The error tree.

A message reads ``<where>: <what is wrong, with the value>; <what to do>``. `ValueError` stays what it is
in Python: our own caller is wrong.
"""


class NearscanError(Exception):
    """Everything that nearscan raises on purpose, but for `ValueError`."""


class ConfigError(NearscanError):
    """The configuration or this machine's environment is wrong; the text may hold one problem per line."""


class PeerError(NearscanError):
    """The other machine broke the protocol."""


class ModelError(NearscanError):
    """A model cannot be used: missing, altered, or not reproducing its golden output here."""


class StorageError(NearscanError):
    """The durable buffer cannot keep what it was given (disk full, damaged, not writable)."""


class RecordingError(NearscanError):
    """A recording cannot be read, or not any further: it is none, or it is damaged."""


class ScanError(NearscanError):
    """Something failed for one scan; carries its id. Raise it ``from`` the cause."""

    def __init__(self, message: str, scan_id: str) -> None:
        super().__init__(message)
        self.scan_id = scan_id


class SourceError(ScanError):
    """A source cannot go on with this scan."""


class StageError(ScanError):
    """A stage cannot take this scan or this frame."""


class DeliveryError(NearscanError):
    """A destination did not take an instance. `permanent` says whether to try again."""

    def __init__(self, message: str, *, permanent: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.status = status
