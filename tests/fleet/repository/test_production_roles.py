"""Thresholds, offline keys and a release role for each class: what is made, what is taken over, what is refused."""

import stat
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from agent.trust.reading import releases
from fleet.errors import ConfigError, ConflictError, RefusedError, RequestError
from fleet.repository import Repository, init_repository
from fleet.repository.classes import request_class
from fleet.repository.generation import read_generation
from fleet.repository.keys import key_files, load_key, offline_key_path, read_password
from fleet.repository.overview import overview
from fleet.repository.request import next_version
from fleet.repository.roles import EMERGENCY, production_roles, to_bytes
from tests.support.production_fleet import ProductionFleet
from tests.support.signed_fleet import DAY_S, Reader, SignedFleet, directive_for

HOUR_S = 3_600.0


@pytest.fixture
def production(tmp_path: Path) -> ProductionFleet:
    return ProductionFleet(tmp_path / "fleet")


def test_keys_thresholds_and_validities_are_those_of_the_design(
    production: ProductionFleet,
) -> None:
    generation = read_generation(production.home / "repository/metadata")
    views = overview(generation, key_files(production.home), production.now_s)
    made = {view.role: (view.threshold, len(view.keys), round(view.days_left)) for view in views}
    assert made == {
        "root": (3, 5, 400),
        "targets": (2, 3, 365),
        "release-camera": (2, 3, 180),
        "release-gateway": (2, 3, 180),
        "emergency": (2, 3, 30),
        "rollout": (1, 1, 7),
        "snapshot": (1, 1, 7),
        "timestamp": (1, 1, 1),
    }
    delegated = generation.targets("targets").delegations
    assert delegated is not None
    assert list(delegated.roles or {})[-2:] == ["emergency", "rollout"], "in the order of trust"
    assert generation.role_for("rollouts/r1/emergency") == "emergency"
    assert generation.role_for("bundles/camera/m-1") == "release-camera"
    assert generation.role_for("bundles/other/m-1") is None
    offline = sorted((production.home / "keys/offline").iterdir())
    assert len(offline) == 5 + 3 + 3 + 3 + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in offline} == {0o600}
    assert stat.S_IMODE((production.home / "keys/offline").stat().st_mode) == 0o700
    assert len(production.repository.offline_keys()) == len(offline)


@pytest.mark.parametrize(
    ("classes", "problem"),
    [([], "name them"), (["a", "a"], "named twice"), (["Bad/Class"], "is not of the form")],
)
def test_classes_that_cannot_be(classes: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        production_roles(classes)


def test_encrypted_offline_keys_need_their_password(tmp_path: Path) -> None:
    home, secret = tmp_path / "f", tmp_path / "secret"
    secret.write_text("a long one\n")
    password = read_password(secret)
    plan = production_roles(["camera"])
    init_repository(home, fleet_name="lab", now_s=0, plan=plan, password=password)
    path = offline_key_path(home, "root", 1)
    assert b"ENCRYPTED" in path.read_bytes()
    with pytest.raises(ConfigError, match="--password-file"):
        load_key(path)
    with pytest.raises(ConfigError, match="cannot be decrypted"):
        load_key(path, b"another one")
    assert load_key(path, password).public_key.keyid
    views = overview(read_generation(home / "repository/metadata"), key_files(home), 0)
    assert (views[0].keys[0].path, views[0].keys[0].note) == (path, "encrypted")
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="must hold a password"):
        read_password(secret)


def test_too_few_signatures_are_not_published(production: ProductionFleet) -> None:
    asked = production.release_request()
    version = production.repository.version
    for numbers in ((), (1,), (3, 3)):
        with pytest.raises(RefusedError, match="not signed by this fleet's release-camera key"):
            production.take(production.signed(asked, *numbers))
    assert (production.repository.version, production.repository.releases()) == (version, {})
    production.take(production.signed(asked, 3, 1))
    assert list(production.repository.releases()) == ["bundles/camera/m-1"]


def test_a_device_reads_the_role_of_its_class_alone(production: ProductionFleet) -> None:
    camera, gateway = production.publish("camera"), production.publish("gateway")
    device = Reader(production.root, device_class="camera")
    source = production.offered()
    state = device.refresh(source, production.repository.pack(), production.now_s)
    assert releases(state) == {camera.path: camera}
    assert not [name for name in source.asked if "gateway" in name]
    everyone = Reader(production.root)
    state = everyone.refresh(production.offered(), None, production.now_s)
    assert set(releases(state)) == {camera.path, gateway.path}


def test_a_class_nobody_releases_for_can_still_be_directed(production: ProductionFleet) -> None:
    device = Reader(production.root, device_class="other")
    assert releases(device.refresh(production.offered(), None, production.now_s)) == {}


@pytest.mark.parametrize("role", ["root", "targets", "release-camera", "emergency"])
def test_offline_roles_are_signed_again_on_request(production: ProductionFleet, role: str) -> None:
    later_s = production.now_s + 20 * DAY_S
    production.repository.resign_if_due(later_s)
    production.now_s = later_s
    chain = production.chain(role)
    asked = production.request(role, next_version(role, chain.base, later_s), chain)
    assert "signed for longer" in asked.says[0]
    threshold = 3 if role == "root" else 2
    with pytest.raises(RefusedError, match="signed by"):
        production.take(production.signed(asked, *range(1, threshold)))
    assert production.take(production.signed(asked, *range(1, threshold + 1))) == 2
    production.repository.resign_if_due(later_s + DAY_S)
    device = Reader(production.root, device_class="camera")
    device.refresh(production.offered(), None, later_s + DAY_S)
    again = Repository(production.home)
    assert again.roles()[role] == 2
    assert production.take(production.signed(asked, *range(1, threshold + 1))) == 2, (
        "changes nothing"
    )


def test_a_version_made_for_an_older_state_is_refused(production: ProductionFleet) -> None:
    slow, fast = production.release_request(version="1"), production.release_request(version="2")
    production.take(production.signed(fast, 1, 2))
    with pytest.raises(ConflictError, match="publish again"):
        production.take(production.signed(slow, 1, 2))


def test_a_role_that_people_do_not_sign(production: ProductionFleet) -> None:
    with pytest.raises(RequestError, match="is no role that people sign here"):
        production.repository.role_metadata("rollout")
    with pytest.raises(RequestError, match="is no role that people sign here"):
        production.repository.accept("../x", b"", production.now_s)


def test_a_class_added_later(production: ProductionFleet) -> None:
    made = request_class(production.home, "drone", production.chain("targets"), production.now_s)
    assert "adds the role release-drone: 2 of release-drone-1" in made.says[0]
    without = production.request("targets", made.metadata, made.chain)
    with pytest.raises(RefusedError, match="send its first version along"):
        production.take(production.signed(without, 1, 2))
    assert production.take(production.signed(made, 1, 2)) == 2
    drone = production.publish("drone")
    device = Reader(production.root, device_class="drone")
    state = device.refresh(production.offered(), None, production.now_s)
    assert releases(state) == {drone.path: drone}
    with pytest.raises(ConflictError, match="exists already"):
        request_class(production.home, "drone", production.chain("targets"), production.now_s)


def test_no_class_is_added_where_one_role_speaks_for_all(tmp_path: Path) -> None:
    fleet = ProductionFleet.__new__(ProductionFleet)
    simple = SignedFleet(tmp_path / "simple")
    fleet.repository = simple.repository
    with pytest.raises(RefusedError, match="the role release speaks for every class"):
        request_class(simple.home, "drone", fleet.chain("targets"), simple.now_s)
    assert not (simple.home / "keys/offline").exists(), "no key is made for nothing"


def test_delegations_to_unknown_roles_are_refused(production: ProductionFleet) -> None:
    chain = production.chain("targets")
    for change, problem in (
        ("rename", "nobody here understands"),
        ("drop", "no longer speaks of rollout"),
    ):
        following = next_version("targets", chain.base, production.now_s)
        roles = following.signed.delegations.roles
        role = roles.pop("rollout")
        if change == "rename":
            role.name = "../../x"
            roles[role.name] = role
        asked = production.signed(production.request("targets", following, chain), 1, 2)
        with pytest.raises(RefusedError, match=problem):
            production.take(asked)


def test_rollout_before_emergency_is_refused(production: ProductionFleet) -> None:
    chain = production.chain("targets")
    following = next_version("targets", chain.base, production.now_s)
    roles = following.signed.delegations.roles
    roles[EMERGENCY] = roles.pop(EMERGENCY)
    asked = production.signed(production.request("targets", following, chain), 1, 2)
    assert any("the order of trust becomes" in line for line in asked.says)
    with pytest.raises(RefusedError, match="emergency has to come first"):
        production.take(asked)


def test_a_folder_of_an_older_version_has_no_emergency_role(tmp_path: Path) -> None:
    from fleet.repository.roles import SIMPLE_ROLES

    plan = [role for role in SIMPLE_ROLES if role.name != EMERGENCY]
    root = init_repository(tmp_path / "old", fleet_name="lab", now_s=1_800_000_000, plan=plan)
    repository = Repository(tmp_path / "old")
    assert EMERGENCY not in repository.roles()
    assert repository.resign_if_due(1_800_000_000 + 5 * DAY_S)
    fleet = SignedFleet.__new__(SignedFleet)
    fleet.repository = repository
    Reader(root).refresh(fleet.offered(), repository.pack(), 1_800_000_000 + 5 * DAY_S)


def test_the_server_keeps_an_empty_emergency_role_fresh_where_its_key_is(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    later_s = fleet.now_s + 16 * DAY_S
    while fleet.repository.resign_if_due(later_s):
        pass
    assert fleet.repository.roles()[EMERGENCY] == 2
    production = ProductionFleet(tmp_path / "production")
    while production.repository.resign_if_due(later_s):
        pass
    assert production.repository.roles()[EMERGENCY] == 1
    assert EMERGENCY in production.repository.expiring(later_s, 15 * DAY_S)


def test_the_timestamp_holds_for_at_least_an_hour_while_a_rollout_is_under_way(
    production: ProductionFleet,
) -> None:
    """Looked at every minute, as the server does: two hours, signed again when half of them are over."""
    bundle = production.publish()
    directive = directive_for(bundle, percent_bp=100)
    production.repository.set_directives([directive], production.now_s)
    signings, least_s = 0, 2 * HOUR_S
    for minute in range(24 * 60):
        now_s = production.now_s + 60.0 * minute
        signings += production.repository.resign_if_due(now_s)
        raw = production.repository.metadata("timestamp.json")
        assert raw is not None
        left_s = Metadata.from_bytes(raw).signed.expires.timestamp() - now_s
        least_s = min(least_s, left_s)
        assert left_s <= 2 * HOUR_S
    assert least_s >= HOUR_S
    assert 22 <= signings <= 25
    done = directive_for(bundle, percent_bp=10_000)
    production.repository.set_directives([done], production.now_s + DAY_S)
    assert not production.repository.resign_if_due(production.now_s + 1.4 * DAY_S)


def test_companions_are_the_first_version_of_their_role(production: ProductionFleet) -> None:
    made = request_class(production.home, "drone", production.chain("targets"), production.now_s)
    first = made.companions["release-drone"]
    first.signed.version = 7
    first.signatures.clear()
    for number in (1, 2):
        first.sign(production.key("release-drone", number), append=True)
    assert to_bytes(first)
    with pytest.raises(ConflictError, match="the next is 1"):
        production.take(production.signed(made, 1, 2))
