"""Certificates in files, tried before gRPC gets them, which says little of what is wrong with them."""

from __future__ import annotations

import ssl

from vs3r.errors import InputError


def check_pair(cert: str, key: str | None) -> None:
    """Look whether two files hold a certificate and its key.

    Raises:
        InputError: they do not, or the key needs a password.
    """
    try:
        # A password asked for would wait for ever.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except ssl.SSLError:
        raise InputError(f"expected a certificate in {cert} and its key, without a password, in {key} (PEM)") from None


def check_authority(ca: str) -> None:
    """Look whether a file holds an authority's certificate.

    Raises:
        InputError: it does not.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError:
        raise InputError(f"expected a certificate (PEM) in {ca}; check the path") from None
