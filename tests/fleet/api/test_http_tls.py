"""HTTPS: the certificate, the names it is for, and what has to be there before anybody else is let in."""

import dataclasses
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from fleet.api.tls import ServerTls
from fleet.cli.client import FleetClient
from fleet.config import FleetConfig, parse_http_listen
from fleet.daemon import running
from fleet.errors import ConfigError, ServerError
from fleet.home import Home
from fleet.operators import folder
from fleet.operators.roles import Role
from fleet.operators.settings import HttpConfig
from fleet.operators.tokens import Wanted
from tests.support.certificates_operators import write_server_certificate
from tests.support.ephemeral import CONFIG


def with_http(listen: str, tls: bool = True) -> FleetConfig:
    return dataclasses.replace(CONFIG, http=HttpConfig(listen, tls))


async def test_over_https_by_the_names_of_the_certificate(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_server_certificate(home.pki, ("fleet.example", "127.0.0.1"))
    token = folder.create_token(home, Wanted("ada", Role.VIEWER)).token
    async with running(home, with_http("0.0.0.0:0")) as manager:
        assert manager.addresses is not None
        base = manager.addresses.to_json()["http"]
        assert base.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=home.pki.server_ca)
        show = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=base, verify=context, timeout=90, headers=show
        ) as client:

            async def asked(headers: Mapping[str, str]) -> int:
                return (await client.get("/v1/status", headers=headers)).status_code

            assert await asked({}) == 200
            assert await asked({"host": "Fleet.Example:8470"}) == 200
            assert await asked({"origin": "https://fleet.example"}) == 200
            assert await asked({"host": "evil.example"}) == 403
            assert await asked({"origin": "https://evil.example"}) == 403
            old = httpx.AsyncClient(base_url=base, verify=_only_tls_1_2(home), timeout=90)
            with pytest.raises(httpx.ConnectError):
                await old.get("/v1/status")
            await old.aclose()
        import asyncio

        monkeypatch.setenv("MUSTER_HOME", str(home.path))
        assert await asyncio.to_thread(_status, base) == "lab"  # run.json has the token and the CA
        monkeypatch.setenv("MUSTER_HOME", str(home.path / "elsewhere"))
        with pytest.raises(ServerError, match=r"is not one to trust .* --ca"):
            await asyncio.to_thread(_status, base)


def _status(server: str) -> str:
    with FleetClient(server) as client:
        return str(client.get_json("/v1/status")["fleet"])


def _only_tls_1_2(home: Home) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=home.pki.server_ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def test_beyond_this_machine_somebody_must_have_a_token(home: Home) -> None:
    write_server_certificate(home.pki)
    with pytest.raises(ConfigError, match="nobody has a token: make one with `fleet token create"):
        async with running(home, with_http("0.0.0.0:0")):
            pass
    assert not home.run_file.exists()


async def test_without_a_certificate_it_says_where_one_goes(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"needs a certificate in .*server\.pem"):
        async with running(home, with_http("127.0.0.1:0")):
            pass


def test_beyond_this_machine_tokens_are_not_sent_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="tokens would cross the network unencrypted"):
        parse_http_listen(HttpConfig("10.0.0.7:8470"))
    assert str(parse_http_listen(HttpConfig("10.0.0.7:8470", tls=True))) == "10.0.0.7:8470"
    assert parse_http_listen(HttpConfig("localhost:0")).is_loopback


def test_a_renewed_certificate_is_taken_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    pki = Home(tmp_path).pki
    write_server_certificate(pki, ("one.example",))
    tls = ServerTls(pki.server, pki.server_key)
    assert tls.names == {"one.example"}
    assert not tls.refresh()
    write_server_certificate(pki, ("Two.example", "::1"))
    assert tls.refresh()
    assert tls.names == {"two.example", "::1"}
    for content in (b"", b"no certificate"):
        pki.server.write_bytes(content)
        assert not tls.refresh()
        assert tls.names == {"two.example", "::1"}
    pki.server.unlink()
    assert not tls.refresh()
