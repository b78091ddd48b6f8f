"""Keys by URI: files with and without a password, tokens, clouds; what goes wrong is said with the URI."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from fleet.errors import ConfigError
from fleet.repository.signers import (
    PASSWORD_VARIABLE,
    Secrets,
    absolute_uri,
    add_signature,
    load_signer,
    public_key_of,
)

NOBODY = Secrets()


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PASSWORD_VARIABLE, "PYKCS11LIB"):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


@pytest.fixture
def key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def stored(path: Path, key: CryptoSigner, password: str = "") -> Path:
    private = load_pem_private_key(key.private_bytes, None)
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


def test_a_file_by_path_and_by_uri(
    tmp_path: Path, key: CryptoSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "k.pem", key)
    monkeypatch.chdir(tmp_path)
    for uri in (
        str(path),
        f"file:{path}",
        f"file://{path}",
        f"file2:{path}",
        "k.pem",
        "file:k.pem",
    ):
        assert load_signer(uri, NOBODY).public_key == key.public_key
        assert load_signer(absolute_uri(uri), NOBODY, Path("/nowhere")).public_key == key.public_key
        assert public_key_of(uri, NOBODY) == key.public_key
    assert load_signer("k.pem", NOBODY, tmp_path).public_key == key.public_key


def test_a_password_from_file_environment_or_person(
    tmp_path: Path, key: CryptoSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(stored(tmp_path / "k.pem", key, "sesame"))
    secret = tmp_path / "secret"
    secret.write_text("sesame\nanything\n")
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return "sesame"

    assert load_signer(path, Secrets(secret)).public_key == key.public_key
    assert load_signer(path, Secrets(ask=ask)).public_key == key.public_key
    assert asked == [f"the password of {path}"]
    with pytest.raises(ConfigError, match=f"nobody can be asked: .* set {PASSWORD_VARIABLE}"):
        load_signer(path, NOBODY)
    monkeypatch.setenv(PASSWORD_VARIABLE, "sesame")
    assert load_signer(path, NOBODY).public_key == key.public_key
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(ConfigError, match="check the password") as caught:
        load_signer(path, NOBODY)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"), [("", "no password in its first line"), ("x" * 5000, "is larger than")]
)
def test_a_password_file_that_holds_none(
    tmp_path: Path, key: CryptoSigner, content: str, text: str
) -> None:
    path = str(stored(tmp_path / "k.pem", key, "sesame"))
    (tmp_path / "secret").write_text(content)
    with pytest.raises(ConfigError, match=text):
        load_signer(path, Secrets(tmp_path / "secret"))


def test_a_public_key_alone(tmp_path: Path, key: CryptoSigner) -> None:
    path = tmp_path / "k.pub.pem"
    public = load_pem_private_key(key.private_bytes, None).public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert public_key_of(str(path), NOBODY) == key.public_key
    with pytest.raises(ConfigError, match="cannot be used as a private key"):
        load_signer(str(path), NOBODY)
    path.write_text("-----BEGIN PUBLIC KEY-----\nnone\n")
    with pytest.raises(ConfigError, match="is not a public key"):
        public_key_of(str(path), NOBODY)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("missing.pem", "cannot read .*missing.pem: No such file"),
        ("", "cannot read"),
        ("nonsense:1", "is no key that can be used: give a file, pkcs11:"),
        ("azurekms:vault/key", "azurekms key cannot be asked for here"),
        ("awskms:1", r"pip install 'securesystemslib\[awskms\]'"),
        ("gcpkms:1", r"pip install 'securesystemslib\[gcpkms\]'"),
        ("hsm:nine", "the key of a token is a number"),
        ("pkcs11:token=t", "give the key's id"),
        ("pkcs11:token=t;id=%00%01", "give the key's id like id=%01, not zero"),
        ("pkcs11:object=k;id=%01", "object is not used here"),
        ("pkcs11:token=t;id=%01?pin-value=1234", "pin-value is not used here"),
        ("pkcs11:token=t;id=%01?module-path=/no/such.so", "there is no PKCS #11 module"),
    ],
)
def test_what_is_no_key(tmp_path: Path, uri: str, text: str) -> None:
    for read in (load_signer, public_key_of):
        with pytest.raises(ConfigError, match=text) as caught:
            read(uri, NOBODY, tmp_path)
        assert "1234" not in str(caught.value)


def test_a_second_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKCS11LIB", "/usr/lib/one.so")
    two = tmp_path / "two.so"
    two.write_bytes(b"")
    with pytest.raises(ConfigError, match="use one for all keys"):
        load_signer(f"pkcs11:token=t;id=%01?module-path={two}", NOBODY)


def test_a_module_that_is_none(tmp_path: Path) -> None:
    module = tmp_path / "none.so"
    module.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"hsm:1\?label=t"):
        load_signer(f"pkcs11:token=t;id=%01?module-path={module}", NOBODY)


class Broken(CryptoSigner):
    """A token that was pulled out."""

    def sign(self, payload: bytes) -> object:  # type: ignore[override]
        raise OSError("device gone")


def test_a_key_that_does_not_sign(key: CryptoSigner) -> None:
    broken = Broken(load_pem_private_key(key.private_bytes, None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the rollout key does not sign: device gone"):
        add_signature(Metadata(Targets()), broken, "the rollout key")
