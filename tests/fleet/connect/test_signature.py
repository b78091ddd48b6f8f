"""Signatures as a receiver checks them, with code of its own, and the example of the specification."""

import base64
import hashlib
import hmac

import pytest

from fleet.connect.signature import parse_secrets, signed_headers
from fleet.errors import ConfigError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_published_example_comes_out_the_same() -> None:
    body = b'{"test": 2432232314}'
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330.9, body, parse_secrets(SECRET, "x")
    )
    assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_with_two_secrets_either_receiver_is_served() -> None:
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    secrets = parse_secrets(f"\n{other}\n {SECRET}\n", "x")
    headers = signed_headers("m", 7.0, b"{}", secrets)
    found = headers["webhook-signature"].split(" ")
    for secret, signature in zip((other, SECRET), found, strict=True):
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.new(key, b"m.7.{}", hashlib.sha256).digest()
        assert signature == "v1," + base64.b64encode(digest).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 secrets: write 1 to 4"),
        ("\n".join([SECRET] * 5), "has 5 secrets"),
        ("whsec_***", "line 1 is no secret"),
        ("whsec_c2hvcnQ=", "24 to 64 random bytes"),
        (SECRET.removeprefix("whsec_"), "write whsec_ and"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "24 to 64"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_secrets(text, "chat.secret")
    assert message in str(caught.value)
    assert str(caught.value).startswith("chat.secret")
    assert "c2hvcnQ" not in str(caught.value)
