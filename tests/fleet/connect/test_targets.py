"""[[webhook]] in fleet.toml: what is wrong is named with what would be right; secrets stay private."""

import base64
from pathlib import Path

import pytest

from fleet.config import parse_config
from fleet.connect.event_types import EVENT_TYPES
from fleet.connect.targets import load_targets
from fleet.errors import ConfigError

GOOD = {
    "name": '"chat"',
    "url": '"https://chat.example.com/x"',
    "secret_file": '"chat.secret"',
}


def toml(**changes: str) -> str:
    keys = {**GOOD, **changes}
    return "[[webhook]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value)


def test_a_webhook_is_read_with_its_secret(tmp_path: Path) -> None:
    key = b"s" * 24
    path = tmp_path / "chat.secret"
    path.write_text("whsec_" + base64.b64encode(key).decode())
    path.chmod(0o600)
    config = parse_config(toml(events='["rollout.rolled_back"]', link='"https://f.example.com"'))
    [target] = load_targets(tmp_path, config.webhook)
    assert (target.secrets, target.events) == ((key,), ("rollout.rolled_back",))
    assert (target.timeout_s, target.link) == (10.0, "https://f.example.com")
    [everything] = load_targets(tmp_path, parse_config(toml()).webhook)
    assert everything.events == EVENT_TYPES
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"chat\.secret is open to everyone.*chmod 600"):
        load_targets(tmp_path, config.webhook)
    path.unlink()
    with pytest.raises(ConfigError, match=r"chat secret_file .*cannot be read \(No such file"):
        load_targets(tmp_path, config.webhook)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (toml(name=""), "[[webhook]] 1 has no name: set it, for example to chat"),
        (toml(url=""), "[[webhook]] 1 has no url"),
        (toml(secret_file=""), "[[webhook]] 1 has no secret_file"),
        (toml(name='"No Name"'), "[[webhook]] 1 name = 'No Name' is not allowed"),
        (toml() + toml(), "[[webhook]] 2 name = 'chat' is taken"),
        (toml(url='"chat.example.com"'), "is no address: write one like https://"),
        (toml(url='"https://[::1"'), "is no address"),
        (toml(url='"http://10.0.0.1/x"'), "would leave this machine unencrypted: use https"),
        (toml(url='"https://me:pw@example.com"'), "has a name or a password in it"),
        (toml(events='["rollout.hold"]'), "'rollout.hold', which is no event; did you mean"),
        (toml(events='"rollout.held"'), "events = 'rollout.held' must be a list of texts"),
        (toml(timeout_s="0"), "timeout_s = 0 must lie between 0.5 and 30"),
        (toml(link='"ftp://x"'), "[[webhook]] 1 link = 'ftp://x' is no address"),
        (toml(secret="'x'"), "[[webhook]] 1 unknown key 'secret'; did you mean 'secret_file'?"),
        ("[webhook]\nname = 'x'", "[webhook] must be written [[webhook]], once for each"),
        ("".join(toml(name=f'"n{number}"') for number in range(17)), "there are 17 [[webhook]]"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert message in str(caught.value)
    assert "pw" not in str(caught.value)


def test_http_is_fine_on_this_machine() -> None:
    for host in ("127.0.0.1:8080", "localhost", "[::1]:1"):
        assert parse_config(toml(url=f'"http://{host}/x"')).webhook[0].url == f"http://{host}/x"
