from protos import report_pb2 as _report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("device_id", "agent_version")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    agent_version: str
    def __init__(self, device_id: _Optional[str] = ..., agent_version: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("fleet", "pack", "server_unix_ms")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    SERVER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    pack: bytes
    server_unix_ms: int
    def __init__(self, fleet: _Optional[str] = ..., pack: _Optional[bytes] = ..., server_unix_ms: _Optional[int] = ...) -> None: ...

class MetadataRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class MetadataReply(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class TargetRequest(_message.Message):
    __slots__ = ("path", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class TargetReply(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class PieceRequest(_message.Message):
    __slots__ = ("device_id", "pieces")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    pieces: _containers.RepeatedCompositeFieldContainer[PieceRange]
    def __init__(self, device_id: _Optional[str] = ..., pieces: _Optional[_Iterable[_Union[PieceRange, _Mapping]]] = ...) -> None: ...

class PieceRange(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class PieceChunk(_message.Message):
    __slots__ = ("sha256", "offset", "data")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    data: bytes
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class Downlink(_message.Message):
    __slots__ = ("ack", "pack", "signed_ack")
    ACK_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    SIGNED_ACK_FIELD_NUMBER: _ClassVar[int]
    ack: _report_pb2.ReportAck
    pack: bytes
    signed_ack: _report_pb2.SignedAck
    def __init__(self, ack: _Optional[_Union[_report_pb2.ReportAck, _Mapping]] = ..., pack: _Optional[bytes] = ..., signed_ack: _Optional[_Union[_report_pb2.SignedAck, _Mapping]] = ...) -> None: ...

class Presence(_message.Message):
    __slots__ = ("online", "boot_id", "at_unix_ms")
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    online: bool
    boot_id: str
    at_unix_ms: int
    def __init__(self, online: _Optional[bool] = ..., boot_id: _Optional[str] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...
