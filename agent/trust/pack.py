"""The retained message: the small changing part of the metadata, gzip over one protobuf message.

Rules kept here:

* A pack comes from an untrusted broker: its size is bounded before unpacking and while unpacking.
* Names are checked against one pattern, so that no name can mean a place on a disk.
* Packing the same files gives the same bytes, so that an unchanged pack is recognised and dropped.
"""

import gzip
import re
import zlib
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError

from agent.trust.errors import PackMalformedError, PackTooLargeError
from agent.trust.limits import TrustLimits
from agent.wire_fields import has_more_fields
from protos import metadata_pb2

__all__ = ["METADATA_NAME", "encode_pack", "open_pack"]

METADATA_NAME: Final = re.compile(r"([1-9][0-9]{0,9}\.)?[a-z][a-z0-9-]{0,63}\.json")
"""The form of every metadata file's name: ``12.snapshot.json``, ``timestamp.json``."""


def encode_pack(files: Mapping[str, bytes]) -> bytes:
    """Pack metadata files, in order of their names."""
    pack = metadata_pb2.MetadataPack()
    for name, content in sorted(files.items()):
        pack.files.add(name=name, content=content)
    return gzip.compress(pack.SerializeToString(deterministic=True), mtime=0)


def open_pack(payload: bytes, limits: TrustLimits) -> dict[str, bytes]:
    """The metadata files in a pack, by name. Nothing in them is verified yet.

    Raises:
        PackTooLargeError: the payload, or what it unpacks to, is larger than allowed.
        PackMalformedError: it is not gzip over a MetadataPack, or a name is repeated or not a
            metadata file's.
    """
    if len(payload) > limits.pack_bytes:
        raise PackTooLargeError(
            f"the metadata pack is {len(payload)} bytes, more than the {limits.pack_bytes} "
            "allowed; it is ignored"
        )
    unpacked = _gunzip(payload, limits.pack_unpacked_bytes)
    if has_more_fields(unpacked, limits.pack_files):
        raise PackTooLargeError(
            f"the metadata pack holds more than the {limits.pack_files} files allowed; it is ignored"
        )
    message = metadata_pb2.MetadataPack()
    try:
        message.ParseFromString(unpacked)
    except DecodeError as error:
        raise PackMalformedError(
            "the metadata pack is not a MetadataPack message; it is ignored"
        ) from error
    files: dict[str, bytes] = {}
    for file in message.files:
        if not METADATA_NAME.fullmatch(file.name) or file.name in files:
            raise PackMalformedError(
                f"the metadata pack holds {file.name[:80]!r}, which is repeated or no metadata "
                "file's name"
            )
        files[file.name] = file.content
    return files


def _gunzip(payload: bytes, limit_bytes: int) -> bytes:
    """Unpack exactly one gzip member of at most ``limit_bytes``."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(payload, limit_bytes + 1)
    except zlib.error as error:
        raise PackMalformedError("the metadata pack is not gzip; it is ignored") from error
    if len(data) > limit_bytes:
        raise PackTooLargeError(
            f"the metadata pack unpacks to more than the {limit_bytes} bytes allowed; it is ignored"
        )
    if not unpacker.eof or unpacker.unused_data:
        raise PackMalformedError(
            "the metadata pack is cut short or has bytes after its end; it is ignored"
        )
    return data
