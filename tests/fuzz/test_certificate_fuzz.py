"""Certificates that a device is answered or finds: each is one of a device, or refused by ValueError."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given

from tests.fuzz.certificate_targets import certificate_der, certificate_target, feed_certificate
from tests.fuzz.holes import check_accepted
from tests.fuzz.mutations import bytes_like, examples

DER = certificate_der()
VERSION_3 = bytes.fromhex("a003020102")
BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
URI_TAG = b"\x86"


@examples(150)
@given(bytes_like(certificate_target().seeds, most=3))
def test_a_certificate_whose_bytes_were_changed(data: bytes) -> None:
    feed_certificate(data)


@pytest.mark.parametrize(
    "der",
    [
        DER.replace(VERSION_3, VERSION_3[:-1] + b"\x06"),
        DER.replace(BASIC_CONSTRAINTS, ALTERNATIVE_NAME),
        DER.replace(URI_TAG + b"\x2b", b"\xa3\x2b"),
        DER.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f")),
        certificate_der(x509.DNSName("x")),
        certificate_der(*[x509.UniformResourceIdentifier("spiffe://x/y")] * 2),
        certificate_der(key=ec.derive_private_key(7, ec.SECP384R1())),
    ],
    ids=["version 7", "an extension twice", "a kind of name that nobody reads", "an unknown curve",
         "no URI", "two URIs", "another curve"],
)  # fmt: skip
def test_a_certificate_that_is_none_of_a_device(der: bytes) -> None:
    """Three of these came out as errors of the library, and would have ended the agent at each start."""
    feed_certificate(der)


def test_what_is_fuzzed_is_valid_before_it_is_changed() -> None:
    check_accepted(certificate_target())
