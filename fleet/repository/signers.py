"""Signing keys by URI: a file, a PKCS #11 token, or whatever securesystemslib reaches.

======================================  ============================================================
``PATH``, ``file:PATH``                 private key in PEM PKCS #8, encrypted or not
``pkcs11:token=T;id=%01?module-path=M``  key on a token (RFC 7512), ECDSA on P-256 or P-384
``hsm:1?label=T``                       the same as securesystemslib writes it
``awskms:``, ``gcpkms:``, ...           other schemes of securesystemslib, with its extra installed
======================================  ============================================================

Rules kept here: a private key on a token never leaves it; a password or PIN is asked for when it is
needed, by who opened the key, and is neither kept nor shown; whatever goes wrong behind a URI is said
with the URI, and never as a crash.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
)
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from fleet.errors import ConfigError

__all__ = [
    "PASSWORD_VARIABLE",
    "Secrets",
    "absolute_uri",
    "add_signature",
    "is_public",
    "load_signer",
    "public_key_of",
]

PASSWORD_VARIABLE: Final = "MUSTER_KEY_PASSWORD"  # noqa: S105 (its name, not what it holds)
"""Environment variable that holds the password of a key file, or the PIN of a token."""

_MODULE_VARIABLE: Final = "PYKCS11LIB"
_EXTRAS: Final = {
    "awskms": "securesystemslib[awskms]",
    "azurekms": "securesystemslib[azurekms]",
    "gcpkms": "securesystemslib[gcpkms]",
    "hsm": "muster-edge[hsm]",
    "hv": "securesystemslib[vault]",
    "tkey": "securesystemslib[tkey]",
}
_FILE_SCHEMES: Final = ("file", "file2")
_PUBLIC: Final = b"-----BEGIN PUBLIC KEY-----"
_MAX_SECRET_BYTES: Final = 4096
_MAX_KEY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where a password or PIN comes from: a file, else the environment, else whoever may be asked.

    Attributes:
        file: its first line is the password.
        ask: asks a person for what is named; None where nobody can be asked.
    """

    file: Path | None = None
    ask: Callable[[str], str] | None = None

    def __call__(self, what: str) -> str:
        """The password or PIN for ``what``.

        Raises:
            ConfigError: there is none.
        """
        if self.file is not None:
            return _first_line(self.file)
        from_environment = os.environ.get(PASSWORD_VARIABLE)
        if from_environment:
            return from_environment
        if self.ask is None:
            raise ConfigError(
                f"{what} is needed and nobody can be asked: put it into a file and name that, or set "
                f"{PASSWORD_VARIABLE}"
            )
        return self.ask(what)


def load_signer(uri: str, secrets: Secrets, base: Path = Path()) -> Signer:
    """What signs with the key that a URI names.

    Args:
        uri: as the table of this module says.
        secrets: asked for the password of an encrypted file, and for a PIN when it signs.
        base: folder that a relative path starts from.

    Raises:
        ConfigError: there is no such key, or it cannot be used; the message says why.
    """
    scheme, rest = _split(uri)
    if scheme in _FILE_SCHEMES:
        return _signer_of_file(base / rest, secrets)
    if scheme == "pkcs11":
        token = _token_key(uri)
        token.use_module()
        secrets = secrets if token.pin_file is None else replace(secrets, file=token.pin_file)
        uri = token.hsm_uri
    public = public_key_of(uri, secrets)
    found: Signer = _of_library(uri, lambda: Signer.from_priv_key_uri(uri, public, secrets))
    return found


def public_key_of(uri: str, secrets: Secrets, base: Path = Path()) -> Key:
    """The public key behind a URI; a file may hold the public key alone, in PEM.

    Raises:
        ConfigError: there is no such key, or it cannot be read; the message says why.
    """
    scheme, rest = _split(uri)
    if scheme in _FILE_SCHEMES:
        raw = _read(base / rest, _MAX_KEY_BYTES)
        if _is_public_pem(raw):
            return _public_of_pem(base / rest, raw)
        return load_signer(uri, secrets, base).public_key
    if scheme == "pkcs11":
        token = _token_key(uri)
        token.use_module()
        secrets = secrets if token.pin_file is None else replace(secrets, file=token.pin_file)
        return public_key_of(token.hsm_uri, secrets)
    if scheme == "hsm":
        number, label = _hsm_parts(uri)
        found: tuple[str, Key] = _of_library(uri, lambda: HSMSigner.import_(number, label, secrets))
        return found[1]
    for known in (AWSSigner, GCPSigner):
        if scheme == known.SCHEME:
            imported: tuple[str, Key] = _of_library(uri, partial(known.import_, rest))
            return imported[1]
    if scheme in SIGNER_FOR_URI_SCHEME:
        raise ConfigError(
            f"{uri}: the public key of a {scheme} key cannot be asked for here. Export it as PEM, and use "
            "the key with the tool that holds it"
        )
    raise ConfigError(
        f"{uri} is no key that can be used: give a file, pkcs11:..., or one of "
        f"{', '.join(sorted(set(SIGNER_FOR_URI_SCHEME) - set(_FILE_SCHEMES)))}"
    )


def is_public(uri: str) -> bool:
    """Whether a URI names a file with a public key alone.

    Raises:
        ConfigError: the file cannot be read.
    """
    scheme, rest = _split(uri)
    return scheme in _FILE_SCHEMES and _is_public_pem(_read(Path(rest), _MAX_KEY_BYTES))


def absolute_uri(uri: str) -> str:
    """The same key, whatever folder it is asked for from."""
    scheme, rest = _split(uri)
    return f"file:{Path(rest).absolute()}" if uri and scheme in _FILE_SCHEMES else uri


def add_signature(metadata: "Metadata[Any]", signer: Signer, what: str) -> None:
    """Sign, beside the signatures that are there.

    Args:
        metadata: what is signed; changed in place.
        signer: the key.
        what: names the key in an error.

    Raises:
        ConfigError: the key does not sign: a wrong PIN, a token that is not plugged in.
    """
    try:
        metadata.sign(signer, append=True)
    except RepositoryError as error:
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ConfigError(
            f"{what} does not sign: {_reason(cause)}. Check that the token is there and the PIN is right"
        ) from error


def _split(uri: str) -> tuple[str, str]:
    """Scheme and rest; what has no scheme is a path."""
    scheme, colon, rest = uri.partition(":")
    if not colon or "/" in scheme or "." in scheme:
        return "file", uri
    return scheme, rest.removeprefix("//") if scheme in _FILE_SCHEMES else rest


# --- files ----------------------------------------------------------------------------------------


def _signer_of_file(path: Path, secrets: Secrets) -> CryptoSigner:
    raw = _read(path, _MAX_KEY_BYTES)
    try:
        password = None if b"ENCRYPTED" not in raw else secrets(f"the password of {path}").encode()
        return CryptoSigner(load_pem_private_key(raw, password))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} cannot be used as a private key in PEM PKCS #8: {_reason(error)}. Restore the key from "
            "its backup, or check the password"
        ) from error


def _is_public_pem(raw: bytes) -> bool:
    return raw.lstrip().startswith(_PUBLIC)


def _public_of_pem(path: Path, raw: bytes) -> Key:
    try:
        return SSlibKey.from_crypto(load_pem_public_key(raw))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a public key that can sign metadata: {_reason(error)}. Use Ed25519, or ECDSA on P-256"
        ) from error


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}. Put the file there, or run this where it is kept"
        ) from error
    if len(raw) > limit_bytes:
        raise ConfigError(f"{path} is larger than {limit_bytes} bytes: not what is expected there")
    return raw


def _first_line(path: Path) -> str:
    try:
        line = _read(path, _MAX_SECRET_BYTES).decode("utf-8").partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a password in UTF-8 text") from error
    if not line:
        raise ConfigError(f"{path} has no password in its first line")
    return line


# --- tokens and other libraries -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TokenKey:
    """A key on a PKCS #11 token, as RFC 7512 names it."""

    number: int
    token: str
    module: Path | None
    pin_file: Path | None

    @property
    def hsm_uri(self) -> str:
        query = f"?{urlencode({'label': self.token})}" if self.token else ""
        return f"hsm:{self.number}{query}"

    def use_module(self) -> None:
        """Say which library reaches the token. It is one a process."""
        if self.module is None:
            return
        if not self.module.is_file():
            raise ConfigError(f"there is no PKCS #11 module {self.module}: install what makes it")
        if os.environ.setdefault(_MODULE_VARIABLE, str(self.module)) != str(self.module):
            raise ConfigError(
                f"the PKCS #11 module is {os.environ[_MODULE_VARIABLE]} already and cannot be "
                f"{self.module} too: use one for all keys"
            )


def _token_key(uri: str) -> _TokenKey:
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    named = [part.partition("=")[::2] for part in path.split(";") if part]
    named += [part.partition("=")[::2] for part in query.split("&") if part]
    given = dict(named)
    unknown = sorted(set(given) - {"token", "id", "type", "module-path", "pin-source"})
    if unknown:
        raise ConfigError(
            f"{uri.partition('?')[0]}: {', '.join(unknown)} is not used here. A key is named by token and id "
            "(pkcs11:token=NAME;id=%01), its library by module-path, its PIN by pin-source=file:PATH"
        )
    key_id = unquote_to_bytes(given.get("id", ""))
    if not key_id or key_id[0] == 0:
        raise ConfigError(f"{uri.partition('?')[0]}: give the key's id like id=%01, not zero")
    module, pin = given.get("module-path"), given.get("pin-source")
    return _TokenKey(
        int.from_bytes(key_id, "big"),
        unquote(given.get("token", "")),
        None if module is None else Path(unquote(module)),
        None if pin is None else Path(unquote(pin).removeprefix("file:")),
    )


def _hsm_parts(uri: str) -> tuple[int, str | None]:
    path, _, query = uri.removeprefix("hsm:").partition("?")
    if path and not (path.isascii() and path.isdigit()):
        raise ConfigError(f"{uri}: the key of a token is a number, as in hsm:2?label=NAME")
    return int(path or HSMSigner.SCHEME_KEYID), dict(parse_qsl(query)).get("label")


def _of_library(uri: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ConfigError:
        raise
    except UnsupportedLibraryError as error:
        scheme = uri.partition(":")[0]
        extra = _EXTRAS.get(scheme, f"securesystemslib[{scheme}]")
        raise ConfigError(
            f"{uri}: a library is missing ({error}): pip install '{extra}'"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{uri} cannot be used: {_reason(error)}. Check the URI, that the token or service is there, "
            f"and for a token {_MODULE_VARIABLE} or module-path"
        ) from error


def _reason(error: BaseException) -> str:
    """What an error says, and its kind where it says nothing."""
    return str(error) or type(error).__name__
