# SPDX-License-Identifier: Apache-2.0
"""TLS as BCP 195 wants it (PS3.15 B.12): 1.2 or newer, forward secrecy, both sides known with a CA. For DICOM and
HTTPS alike."""

from __future__ import annotations

import ssl

from appliance.errors import ConfigError
from appliance.settings import ListenTls

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"  # of TLS 1.2; those of 1.3 are all good


def server_context(files: ListenTls, where: str) -> ssl.SSLContext:
    """Give the context of a listener; with `ca`, a peer must show a certificate of it. `where` names the setting in
    errors. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.ca:
            context.load_verify_locations(files.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"{where}: files cannot be used ({error.strerror or type(error).__name__}); "
            "check that they are PEM files, belong together, and may be read by this user"
        ) from error
    return context
