"""The desk: who is let in, how often one may fail, and what is written down."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.errors import TooManyError, UnauthenticatedError
from fleet.home import Home
from fleet.operators import audit_log, tokens
from fleet.operators.attempts import Allowance
from fleet.operators.chain import Entry
from fleet.operators.desk import DeskLimits, Operators
from fleet.operators.folder import local_token
from fleet.operators.roles import LOCAL, Role
from fleet.operators.secret import make_token
from fleet.operators.tokens import Wanted
from fleet.store import Store
from fleet.store.writer import Writer
from tests.support.manual_clock import ManualClock

LOCAL_TOKEN = make_token(bytes(32))
LIMITS = DeskLimits(
    each=Allowance(2, 10.0), together=Allowance(100, 1.0), strangers_written=Allowance(2, 60.0)
)
FAR = "192.0.2.7"


@dataclass
class Lab:
    store: Store
    clock: ManualClock
    desk: Operators
    head_file: Path

    def token(self, name: str = "ada", life_s: float = 1000.0) -> str:
        with self.store.begin() as connection:
            wanted = Wanted(name, Role.VIEWER, life_s)
            return tokens.create(connection, wanted, LOCAL, self.clock.now_s()).token

    def entries(self) -> list[Entry]:
        with self.store.read() as connection:
            return list(audit_log.entries_after(connection))

    async def refused(self, token: str, address: str = FAR) -> type[Exception]:
        try:
            await self.desk.admit(f"Bearer {token}", address)
        except (UnauthenticatedError, TooManyError) as error:
            return type(error)
        raise AssertionError("was let in")


@pytest.fixture
def lab(tmp_path: Path, store: Store) -> Iterator[Lab]:
    clock = ManualClock()
    writer = Writer(store)
    desk = Operators(
        store,
        writer,
        tmp_path / "head.json",
        LOCAL_TOKEN,
        now_s=clock.now_s,
        monotonic_s=clock.monotonic_s,
        limits=LIMITS,
    )
    yield Lab(store, clock, desk, tmp_path / "head.json")
    writer.close()


@pytest.mark.parametrize("header", ["", "Basic YTpi", "Bearer", "Bearer ", "muster_x"])
async def test_without_a_token_it_is_said_where_one_goes(lab: Lab, header: str) -> None:
    with pytest.raises(UnauthenticatedError, match=r"\$MUSTER_TOKEN.*`fleet token create`"):
        await lab.desk.admit(header, FAR)
    assert await lab.desk.tokens_there() == 0


async def test_a_good_token_is_let_in_and_its_use_is_noted_once_a_minute(lab: Lab) -> None:
    token = lab.token()

    def used_s() -> float:
        with lab.store.read() as connection:
            return float(tokens.list_all(connection, lab.clock.now_s())[0]["last_used_s"])

    caller = await lab.desk.admit(f"bearer  {token} ", FAR)
    assert (caller.name, caller.role) == ("ada", Role.VIEWER)
    first_s = used_s()
    await lab.clock.advance(59)
    await lab.desk.admit(f"Bearer {token}", FAR)
    assert used_s() == first_s
    await lab.clock.advance(1)
    await lab.desk.admit(f"Bearer {token}", FAR)
    assert used_s() == first_s + 60


async def test_the_local_token_is_good_on_this_machine_alone(lab: Lab) -> None:
    for address in ("127.0.0.1", "::1"):
        assert await lab.desk.admit(f"Bearer {LOCAL_TOKEN}", address) is LOCAL
    for address in (FAR, "", "unix"):
        assert await lab.refused(LOCAL_TOKEN, address) is UnauthenticatedError


async def test_a_revoked_token_is_out_at_the_next_request(lab: Lab) -> None:
    token = lab.token()
    await lab.desk.admit(f"Bearer {token}", FAR)
    with lab.store.begin() as connection:
        tokens.revoke(connection, "ada", LOCAL, lab.clock.now_s())
    assert await lab.refused(token) is UnauthenticatedError


async def test_who_fails_too_often_waits_and_is_told_how_long(lab: Lab) -> None:
    wrong = make_token(bytes([1] * 32))
    assert [await lab.refused(wrong) for _ in range(3)] == [
        UnauthenticatedError, UnauthenticatedError, TooManyError,
    ]  # fmt: skip
    assert await lab.refused("no token at all") is TooManyError
    with pytest.raises(TooManyError, match="try again in 10 s") as caught:
        await lab.desk.admit(f"Bearer {wrong}", FAR)
    assert caught.value.retry_after_s == 10.0
    assert await lab.refused(wrong, "192.0.2.8") is UnauthenticatedError
    await lab.clock.advance(10)
    assert await lab.refused(wrong) is UnauthenticatedError


async def test_who_guesses_locks_nobody_out_that_was_in(lab: Lab) -> None:
    known, fresh = lab.token("ada"), lab.token("bob")
    await lab.desk.admit(f"Bearer {known}", FAR)
    for number in range(5):
        await lab.refused(make_token(bytes([number + 1] * 32)))
    assert (await lab.desk.admit(f"Bearer {known}", FAR)).name == "ada"
    assert await lab.refused(fresh) is TooManyError  # from the guesser's address it has to wait
    assert (await lab.desk.admit(f"Bearer {fresh}", "192.0.2.8")).name == "bob"


async def test_refused_attempts_are_written_down_as_far_as_the_log_can_bear(lab: Lab) -> None:
    for _ in range(50):
        await lab.desk.note_refused(lab.desk.call("login", "/x").entry("refused", "no"))
    assert [one.reason for one in lab.entries()] == ["no", "no"]
    await lab.clock.advance(60)
    await lab.desk.note_refused(lab.desk.call("login", "/x").entry("refused", "no"))
    newest = lab.entries()[-1]
    assert newest.reason == "no (48 more before it are not written down)"
    assert (newest.name, newest.role, newest.token_id) == ("nobody", "", "")


def test_the_local_token_stays_unless_it_is_damaged_or_others_could_read_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = local_token(home)
    assert local_token(home) == first
    home.local_token.chmod(0o644)
    second = local_token(home)
    assert second != first
    assert home.local_token.stat().st_mode & 0o777 == 0o600
    for content in ("", second[:-1], "\xff"):
        home.local_token.write_text(content)
        third = local_token(home)
        assert third not in {first, second}
        assert local_token(home) == third


async def test_the_head_is_kept_beside_the_database(lab: Lab) -> None:
    await lab.desk.note(lab.desk.call("webhook test", "chat").entry("done"))
    await lab.desk.keep_head()
    assert audit_log.read_head(lab.head_file) == lab.entries()[-1].head


async def test_a_log_that_was_cut_is_an_error_in_the_log_of_the_process(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.head_file.write_text('{"number": 7, "sha256": "' + "0" * 64 + '"}')
    await lab.desk.note(lab.desk.call("webhook test", "chat").entry("done"))
    await lab.desk.keep_head()
    assert "entry 7 of the audit log was cut off" in caplog.text
