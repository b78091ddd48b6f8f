"""SoftHSM: a PKCS #11 token made of files, for tests of keys that never leave their token."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

PROGRAM = shutil.which("softhsm2-util")
PIN = "1234"
_PLACES = ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/local/lib/softhsm", "/usr/lib/*/softhsm")


def module() -> Path | None:
    """The library that reaches SoftHSM's tokens."""
    found = [path for place in _PLACES for path in Path("/").glob(f"{place[1:]}/libsofthsm2.so")]
    return found[0] if found else None


def require_softhsm() -> None:
    """Skip the test where there is none, and say so; in CI that is a failure, so that nothing is skipped silently."""
    missing = "softhsm2 is missing: packaging/debian-deps.sh installs it"
    if PROGRAM is not None and module() is not None:
        if find_spec("pkcs11") is not None:
            return
        missing = "python-pkcs11 is missing: pip install 'muster-edge[hsm]'"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(slots=True)
class Token:
    """One token of its own. A process reaches one folder of tokens only, so there is one for the session."""

    folder: Path
    label: str = "muster test"
    keys: int = 0

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def make(self) -> None:
        """Make the folder, and let this process find it."""
        assert PROGRAM is not None
        tokens = self.folder / "tokens"
        tokens.mkdir()
        config = self.folder / "softhsm2.conf"
        config.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
        self.pin_file.write_text(f"{PIN}\n")
        os.environ["SOFTHSM2_CONF"] = str(config)
        subprocess.run(
            [
                PROGRAM,
                "--init-token",
                "--free",
                "--label",
                self.label,
                "--so-pin",
                "4321",
                "--pin",
                PIN,
            ],
            check=True,
            capture_output=True,
        )

    def new_key(self) -> str:
        """Make a P-256 key on the token; its URI."""
        import pkcs11
        from pkcs11.util.ec import encode_named_curve_parameters

        self.keys += 1
        found = pkcs11.lib(str(module())).get_token(token_label=self.label)
        with found.open(rw=True, user_pin=PIN) as session:
            curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
            parameters.generate_keypair(id=bytes([self.keys]), label=f"key {self.keys}", store=True)
        return self.uri(self.keys)

    def uri(self, number: int, *, pin_file: Path | None = None) -> str:
        """RFC 7512 of a key."""
        return (
            f"pkcs11:token={quote(self.label)};id=%{number:02x}?module-path={module()}"
            f"&pin-source=file:{pin_file or self.pin_file}"
        )
