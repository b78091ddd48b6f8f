"""The private keys at hand, found by what they are and not by what their file is called.

Rules kept here:

* Which key signs is said by the root and the targets role; a file name is only where a key lies.
* A new key lies beside the one it replaces (``timestamp.next.pem``) until the metadata names it, and
  takes its place afterwards: after a crash on either side of that moment the right key is found.
* A key is never removed or overwritten before the metadata has stopped naming it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Signer

from fleet.errors import ConfigError, ServerError
from fleet.repository.files import write_durable
from fleet.repository.keys import key_path, load_key
from fleet.repository.roles import KEY_NAME_FIELD
from fleet.repository.signers import Secrets, load_signer

__all__ = [
    "KeyRing",
    "OnlineKeys",
    "fresh_key",
    "key_stem",
    "next_path",
    "put_in_place",
    "read_keyring",
    "store_key",
]

_NEXT: Final = ".next.pem"


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """Where the keys of the roles lie that the server signs itself: rollout, snapshot, timestamp, an empty emergency.

    Attributes:
        uris: by role, keys that are not in the role's own file; the first that fits is used.
        secrets: asked for passwords and PINs.
    """

    uris: Mapping[str, Sequence[str]] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)

    def has(self, home: Path, role: str) -> bool:
        """Whether there is a key for a role, usable or not."""
        return bool(self.uris.get(role)) or any(True for _ in _files_of(home, role))

    def signer(self, home: Path, role: str, wanted: Collection[str]) -> Signer:
        """The key of a role.

        Args:
            home: the fleet folder.
            role: whose key.
            wanted: ids of the keys that may sign; where none fits, any key is returned, and its
                signature will not count.

        Raises:
            ConfigError: there is no key, or it cannot be read.
        """
        first: Signer | None = None
        for uri in (*self.uris.get(role, ()), *_files_of(home, role)):
            signer = load_signer(uri, self.secrets, home)
            if signer.public_key.keyid in wanted:
                return signer
            first = first or signer
        return first or load_key(key_path(home, role))


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Private keys that can be used now.

    Attributes:
        signers: by key id.
        places: by key id, the URI or file it was read from.
        unusable: files that hold no key that can be read, and why.
    """

    signers: Mapping[str, Signer]
    places: Mapping[str, str]
    unusable: Mapping[str, str]


def read_keyring(
    home: Path, roles: Collection[str], extra: Sequence[str], secrets: Secrets
) -> KeyRing:
    """The keys of some roles that lie in a fleet folder, and others by URI.

    A file of the folder that cannot be read is noted, since others may do; one asked for is not.

    Args:
        home: the fleet folder.
        roles: whose keys to look for; a file's name begins with its role.
        extra: URIs of keys that lie elsewhere.
        secrets: asked for passwords and PINs.

    Raises:
        ConfigError: a key of ``extra`` cannot be used.
    """
    signers: dict[str, Signer] = {}
    places: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for uri in extra:
        signer = load_signer(uri, secrets)
        signers[signer.public_key.keyid] = signer
        places[signer.public_key.keyid] = uri
    for path in _key_files(home):
        if not any(_is_of(path, role) for role in roles):
            continue
        try:
            signer = load_signer(f"file:{path.absolute()}", secrets)
        except ConfigError as error:
            unusable[str(path)] = str(error)  # told by the caller when signatures are missing
            continue
        signers.setdefault(signer.public_key.keyid, signer)
        places.setdefault(signer.public_key.keyid, str(path))
    return KeyRing(signers, places, unusable)


def next_path(path: Path) -> Path:
    """Where the key lies that is to replace the one in ``path``."""
    return path.with_name(path.name.removesuffix(".pem") + _NEXT)


def key_stem(path: Path) -> str:
    """What the key in a file is called: the name that the file has in the end, without its ending."""
    return path.name.removesuffix(".pem").removesuffix(".next")


def fresh_key(path: Path, name: str) -> CryptoSigner:
    """An Ed25519 key that no file holds yet, or the one that an attempt before has left in ``path``.

    Args:
        path: where it is to be stored.
        name: what people are to call its public half.

    Raises:
        ConfigError: what lies there is no key.
    """
    signer = load_key(path) if path.exists() else CryptoSigner.generate_ed25519()
    signer.public_key.unrecognized_fields[KEY_NAME_FIELD] = name
    return signer


def store_key(path: Path, signer: CryptoSigner) -> None:
    """Store a new key, unless it is there already.

    Raises:
        ServerError: it cannot be stored.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServerError(f"cannot make {path.parent}: {error.strerror or error}") from error
    write_durable(path, signer.private_bytes, mode=0o600)


def put_in_place(home: Path, named: frozenset[str]) -> list[Path]:
    """Move every new key that the metadata names over the one it replaces.

    Args:
        home: the fleet folder.
        named: ids of all keys that root and targets name.

    Returns:
        The files that hold new keys now.

    Raises:
        ServerError: a file cannot be moved.
    """
    moved = []
    for path in _key_files(home):
        if not path.name.endswith(_NEXT):
            continue
        key = _key_in(path)
        place = path.with_name(path.name.removesuffix(_NEXT) + ".pem")
        replaced = _key_in(place)
        if key is None or key.public_key.keyid not in named:
            continue
        if replaced is not None and replaced.public_key.keyid in named - {key.public_key.keyid}:
            continue  # still in use; the new one is found where it is
        write_durable(place, key.private_bytes, mode=0o600)
        try:
            path.unlink()
        except OSError as error:
            raise ServerError(f"cannot remove {path}: {error.strerror or error}") from error
        moved.append(place)
    return moved


def _key_in(path: Path) -> CryptoSigner | None:
    """The key in a file; None when there is none that can be read."""
    try:
        return load_key(path)
    except ConfigError:
        return None  # nothing here, or encrypted, or damaged: not what this module has made


def _files_of(home: Path, role: str) -> Iterator[str]:
    place = key_path(home, role)
    for path in (place, next_path(place)):
        if path.exists():
            yield f"file:{path.absolute()}"


def _key_files(home: Path) -> list[Path]:
    folder = home / "keys"
    found = [*folder.glob("*.pem"), *folder.glob("offline/*.pem")]
    return sorted(path for path in found if not path.name.endswith(".pub.pem"))


def _is_of(path: Path, role: str) -> bool:
    stem = key_stem(path)
    return stem == role or stem.startswith(f"{role}-")
