"""fleet.toml: the example is the truth, and what is wrong is named with what would be right."""

from pathlib import Path

import pytest

from fleet.broker_mode import BrokerPlace, parse_broker_mode
from fleet.config import (
    BrokerConfig,
    FleetConfig,
    Listen,
    NameConfig,
    example_config,
    load_config,
    parse_config,
    parse_listen,
)
from fleet.errors import ConfigError


def test_the_example_says_exactly_the_defaults() -> None:
    text = example_config("lab")
    assert parse_config(text) == FleetConfig(fleet=NameConfig("lab"))
    assert parse_config("") == FleetConfig()
    assert max(len(line) for line in text.splitlines()) <= 100


def test_what_is_set_counts_and_a_whole_number_is_a_number() -> None:
    config = parse_config('[controller]\ntick_s = 2\n[broker]\nmode = "none"\n')
    assert config.controller.tick_s == 2.0
    assert config.broker == BrokerConfig("none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[htp]", "unknown section 'htp'; did you mean 'http'?"),
        ("[http]\nlissten = 'x'", "[http] unknown key 'lissten'; did you mean 'listen'?"),
        ("[http]\nzzz = 1", "[http] unknown key 'zzz'; known: listen"),
        ("http = 1", "[http] must be a table of keys, not 1"),
        ("[http]\nlisten = 1", "[http] listen = 1 must be a text"),
        ("[http]\nlisten = '8470'", "[http] listen = '8470' is no address: use HOST:PORT"),
        ("[http]\nlisten = '127.0.0.1:70000'", "is no address"),
        ("[grpc]\nlisten = '0.0.0.0:1'", "[grpc] listen = '0.0.0.0' is not a loopback address"),
        ("[broker]\nmode = 'amqp://x'", "[broker] mode = 'amqp://x' is not known: use"),
        ("[broker]\nmode = 'mqtt://u@127.0.0.1'", "is not known"),
        ("[broker]\nmode = 'mqtt://10.1.2.3:1883'", "is not a loopback address, and without TLS"),
        ("[broker]\nmode = 'mqtt://broker.example'", "use mqtts://broker.example:8883, see docs"),
        ("[broker]\nmode = 'mqtts://bro ker'", "is no host name"),
        ("[broker]\nmode = 'mqtts://:8883'", "is not known"),
        ("[broker]\nmode = 'mqtts://x:99999'", "is no address"),
        (
            "[broker]\nlisten = '0.0.0.0:8472'",
            "neither mutual TLS nor rules for topics, so it never leaves this machine. For devices "
            'elsewhere there are two ways: a broker of your own ([broker] mode = "mqtts://HOST:PORT"; '
            "`fleet broker config` writes Mosquitto's configuration), or gRPC alone "
            '([broker] mode = "none").',
        ),
        ("[controller]\ntick_s = 0", "[controller] tick_s = 0 must lie between 0.05 and 3600"),
        ("[controller]\ntick_s = nan", "tick_s = nan must lie between"),
        ("[controller]\ntick_s = true", "[controller] tick_s = True must be a number"),
        ("[ingest]\ncommit_reports = 1.5", "must be a whole number"),
        ("[log]\nlevel = 'loud'", "[log] level = 'loud' must be one of debug, info"),
        ("[fleet]\nname = 'No/Name'", "[fleet] name = 'No/Name' is not allowed"),
        ("[", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fleet init` makes a fleet folder"):
        load_config(tmp_path / "fleet.toml")
    (tmp_path / "fleet.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "fleet.toml")
    (tmp_path / "fleet.toml").write_bytes(b"#" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(tmp_path / "fleet.toml")
    (tmp_path / "fleet.toml").write_text("[x]")
    with pytest.raises(ConfigError, match=r"fleet\.toml: unknown section 'x'"):
        load_config(tmp_path / "fleet.toml")


def test_addresses() -> None:
    assert parse_listen("[::1]:5", "x") == Listen("::1", 5)
    assert str(Listen("::1", 5)) == "[::1]:5"
    assert parse_broker_mode("mqtt://localhost") == BrokerPlace("localhost", 1883, tls=False)
    assert parse_broker_mode("mqtt://[::1]:9") == BrokerPlace("::1", 9, tls=False)
    assert parse_broker_mode("mqtts://broker.example") == BrokerPlace("broker.example", 8883, True)
    assert parse_broker_mode("mqtts://[fd00::1]:9") == BrokerPlace("fd00::1", 9, tls=True)
    assert parse_broker_mode("embedded") is None


def test_devices_may_come_from_anywhere_once_they_show_certificates() -> None:
    listen = "[grpc]\nlisten = '0.0.0.0:8471'\n"
    with pytest.raises(ConfigError, match=r"run `fleet tls init`, then set \[grpc\] tls = true"):
        parse_config(listen)
    assert parse_config(listen + "tls = true\n").grpc.listen == "0.0.0.0:8471"
    with pytest.raises(ConfigError, match=r"\[http\] listen = '0.0.0.0:8470' is not a loopback"):
        parse_config(listen + "tls = true\n[http]\nlisten = '0.0.0.0:8470'\n")
    with pytest.raises(ConfigError, match=r"\[enrolment\] accept = 'never' must be one of"):
        parse_config("[enrolment]\naccept = 'never'\n")
    with pytest.raises(ConfigError, match=r"\[tls\] names has 'a b'"):
        parse_config("[tls]\nnames = ['a b']\n")
