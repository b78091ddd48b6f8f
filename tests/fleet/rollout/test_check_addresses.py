"""A check beyond this machine is asked over TLS, unless the operator says otherwise in it."""

import pytest

from fleet.errors import RequestError
from fleet.rollout.check_addresses import is_this_machine, require_tls, shown_url
from fleet.rollout.rollout_toml import spec_from_toml

HEAD = 'bundle = "bundles/cam/a-1"\n[[check]]\n'


@pytest.mark.parametrize(
    "check",
    [
        'url = "https://ci.example.com/gate"',
        'url = "http://127.0.0.1:8080/gate"',
        'url = "http://[::1]/gate"',
        'url = "http://localhost/gate"',
        'url = "http://10.0.0.7/gate"\nplain_http = true',
    ],
)
def test_these_may_be_asked(check: str) -> None:
    require_tls(spec_from_toml(HEAD + check).checks)


@pytest.mark.parametrize(
    "host",
    [
        "ci.example.com",
        "10.0.0.7",
        "localhost.example.com",
        "[fe80::1]",
        "[::ffff:10.0.0.7]",
        "localhost.",
        "127.0.0.1.example.com",
        "2130706433",
        "0.0.0.0",
    ],
)
def test_plain_http_beyond_this_machine_is_refused_and_says_what_to_write(host: str) -> None:
    checks = spec_from_toml(f'{HEAD}url = "http://u:pw@{host}/gate?key=secret"').checks
    with pytest.raises(RequestError) as met:
        require_tls(checks)
    said = str(met.value)
    assert f"check 1: {host}/gate would be asked beyond this machine in plain http" in said
    assert "write https://, or plain_http = true" in said
    assert "secret" not in said
    assert "pw" not in said


def test_one_that_is_stored_already_is_read_all_the_same() -> None:
    """A rollout that began before this was refused goes on."""
    assert not spec_from_toml(f'{HEAD}url = "http://ci.example.com/gate"').checks[0].plain_http


def test_a_url_is_shown_without_name_password_and_query() -> None:
    assert shown_url("http://[::1]:80/a?b#c") == "[::1]:80/a"
    assert shown_url("https://u:pw@ci.example.com/gate?key=secret") == "ci.example.com/gate"


@pytest.mark.parametrize(
    ("address", "here"),
    [
        (("127.0.0.1", 80), True),
        (("127.9.9.9", 80), True),
        (("::1", 80, 0, 0), True),
        (("10.0.0.7", 80), False),
        (("fe80::1%eth0", 80, 0, 2), False),
        (("a name", 80), False),
        ("/run/a.sock", False),
        ((), False),
        (None, False),
    ],
)
def test_where_a_connection_went(address: object, here: bool) -> None:
    assert is_this_machine(address) is here
