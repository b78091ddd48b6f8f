"""Certificates that a device is answered, finds, or is shown by a broker: each is right, or refused in one way."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given

from tests.fuzz.certificate_targets import (
    certificate_der,
    certificate_targets,
    feed_certificate,
    feed_signed_ack,
    signed_ack,
)
from tests.fuzz.holes import check_accepted
from tests.fuzz.mutations import bytes_like, examples

DER = certificate_der()
VERSION_3 = bytes.fromhex("a003020102")
BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
URI_TAG = b"\x86"


TARGETS = {target.name: target for target in certificate_targets()}


@examples(150)
@given(bytes_like(TARGETS["certificate"].seeds, most=3))
def test_a_certificate_whose_bytes_were_changed(data: bytes) -> None:
    feed_certificate(data)


@examples(150)
@given(bytes_like(TARGETS["signed-ack"].seeds, most=3))
def test_an_acknowledgement_whose_bytes_were_changed(data: bytes) -> None:
    feed_signed_ack(data)


NO_CERTIFICATES = pytest.mark.parametrize(
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


@NO_CERTIFICATES
def test_a_certificate_that_is_none_of_a_device(der: bytes) -> None:
    """Three of these came out as errors of the library, and would have ended the agent at each start."""
    feed_certificate(der)


@NO_CERTIFICATES
def test_an_acknowledgement_under_a_certificate_that_is_none(der: bytes) -> None:
    """They ended the link of a device over MQTT; any broker could send one."""
    feed_signed_ack(signed_ack(der))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_fuzzed_is_valid_before_it_is_changed(name: str) -> None:
    check_accepted(TARGETS[name])
