"""The fleet manager's keys on a PKCS #11 token: they sign there, and a device follows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.trust.reading import directives
from fleet.config import KeysConfig, parse_config
from fleet.errors import ConfigError
from fleet.home import Home
from fleet.repository import Repository, key_path
from fleet.repository.change_keys import KeyWish, change_key
from fleet.repository.configured import online_keys
from fleet.repository.roles import ONLINE_ROLES
from tests.support.signed_fleet import Reader, SignedFleet, directive_for
from tests.support.softhsm import Token, require_softhsm

pytestmark = pytest.mark.softhsm


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    require_softhsm()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SOFTHSM2_CONF", "PYKCS11LIB"):
            patch.setenv(name, "")
            patch.delenv(name)
        made = Token(tmp_path_factory.mktemp("token"))
        made.make()
        yield made


def moved(fleet: SignedFleet, token: Token) -> KeysConfig:
    """Bring every key that the server has to the token; what fleet.toml has to say then."""
    uris = {}
    for role in ONLINE_ROLES:
        uris[role] = token.new_key()
        known = online_keys(Home(fleet.home), KeysConfig(**uris))
        repository = Repository(fleet.home, fleet.manifests.get, known)
        change_key(fleet.home, repository, KeyWish(role=role, new_key=uris[role]), fleet.now_s)
        key_path(fleet.home, role).unlink()
    lines = [f'{role} = "{uri}"' for role, uri in uris.items()]
    return parse_config("\n".join(["[keys]", *lines])).keys


def test_the_servers_keys_on_a_token_and_a_device_follows(fleet: SignedFleet, token: Token) -> None:
    bundle = fleet.publish()
    device = Reader(fleet.root)
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    config = moved(fleet, token)
    fleet.repository = Repository(
        fleet.home, fleet.manifests.get, online_keys(Home(fleet.home), config)
    )
    pack = fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), pack, fleet.now_s)
    assert directives(device.state)[0].halt
    generation = fleet.repository.generation
    schemes = {key.scheme for key in generation.root.keys.values()}
    assert schemes == {"ed25519", "ecdsa-sha2-nistp256"}
    assert [path.stem for path in sorted((fleet.home / "keys").iterdir())] == [
        "emergency", "release", "root", "targets",
    ]  # fmt: skip
    fleet.publish(version="2")
    device.refresh(fleet.offered(), None, fleet.now_s)


def test_a_wrong_pin(fleet: SignedFleet, token: Token, tmp_path: Path) -> None:
    bundle = fleet.publish()
    config = moved(fleet, token)
    (tmp_path / "pin").write_text("9999\n")
    wrong = {
        role: getattr(config, role).replace(str(token.pin_file), str(tmp_path / "pin"))
        for role in ONLINE_ROLES
    }
    server = Repository(fleet.home, None, online_keys(Home(fleet.home), replace(config, **wrong)))
    version = server.version
    with pytest.raises(ConfigError, match=r"the rollout key does not sign: PinIncorrect") as caught:
        server.set_directives([directive_for(bundle)], fleet.now_s)
    assert "9999" not in str(caught.value)
    assert server.version == version


def test_a_key_that_is_not_on_the_token(fleet: SignedFleet, token: Token) -> None:
    known = online_keys(Home(fleet.home), KeysConfig(rollout=token.uri(99)))
    server = Repository(fleet.home, None, known)
    with pytest.raises(ConfigError, match="could not find ECDSA key"):
        server.set_directives([directive_for(fleet.publish())], fleet.now_s)


def test_back_from_the_token_into_a_file(fleet: SignedFleet, token: Token) -> None:
    config = moved(fleet, token)
    known = online_keys(Home(fleet.home), config)
    repository = Repository(fleet.home, fleet.manifests.get, known)
    done = change_key(fleet.home, repository, KeyWish(role="snapshot"), fleet.now_s)
    assert done.key_file == key_path(fleet.home, "snapshot")
    repository.resign_if_due(fleet.now_s + 5 * 86_400)
    assert fleet.key("snapshot").public_key.keyid == done.added
