"""The Open Inference Protocol's gRPC methods, from bytes to bytes, for whichever front end carries them.

Rules kept here:

- What is answered is ``agent.serving.protocol``'s; here are only methods and messages. Both gRPC front ends
  (``agent.serving.http2``, ``agent.serving.grpcio_front``) carry every method that is listed here and no other.
- A stream answers its requests in order, one answer each; a request that fails is answered with its
  error and ends nothing.
- No grpc here: the library is imported by its own front end alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError, Message

from agent.bundle import TensorSpec
from agent.runtime.dtypes import Array
from agent.serving.codec import MessageRequest
from agent.serving.errors import MalformedMessageError
from agent.serving.feedback import FEEDBACK_SERVICE
from agent.serving.infer_wire import MAX_FIELDS, length_prefixed, read_wire
from agent.serving.protocol import (
    PLATFORM,
    Answer,
    InferenceProtocol,
    Parameter,
    Question,
    fault_of,
)
from agent.wire_fields import has_more_fields
from protos import feedback_pb2
from protos import inference_pb2 as oip

__all__ = [
    "MAX_STREAMS",
    "SERVICE",
    "InferRequest",
    "InferenceService",
    "Kind",
    "Method",
    "streamed",
    "streamed_failure",
]

SERVICE: Final = "inference.GRPCInferenceService"
MAX_STREAMS: Final = 32
"""Open at once."""

Buffer = bytes | bytearray


class Kind(Enum):
    """How a method is carried."""

    PLAIN = "one request, one answer, quick"
    INFER = "one request, one answer, runs a model"
    STREAM = "requests and answers in order, each runs a model"


@dataclass(frozen=True, slots=True)
class Method:
    """One method. ``answer`` makes a PLAIN one's answer; the others are asked by ``InferenceService.read`` and
    ``infer``."""

    name: str
    kind: Kind
    answer: Callable[[Buffer], bytes] | None = None


class InferRequest(Protocol):
    """A request to run a model, read from its bytes."""

    model: str
    version: str
    id: str
    outputs: Sequence[str]
    parameters: Mapping[str, Parameter]
    servable_sha256: str
    """Digest of the version that answered, once it did."""

    def decode(self) -> dict[str, Array]: ...

    def encode(self, answer: Answer) -> bytes: ...


class InferenceService:
    """The methods by their paths. Safe for threads."""

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol
        plain: Mapping[str, tuple[Callable[[Any], Message], type[Message]]] = {
            "ServerLive": (self._server_live, oip.ServerLiveRequest),
            "ServerReady": (self._server_ready, oip.ServerReadyRequest),
            "ModelReady": (self._model_ready, oip.ModelReadyRequest),
            "ServerMetadata": (self._server_metadata, oip.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, oip.ModelMetadataRequest),
            "RepositoryIndex": (self._repository_index, oip.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._refuse_change, oip.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self._refuse_change, oip.RepositoryModelUnloadRequest),
        }
        methods = [
            Method(f"/{SERVICE}/ModelInfer", Kind.INFER),
            Method(f"/{SERVICE}/ModelStreamInfer", Kind.STREAM),
            _plain(
                f"/{FEEDBACK_SERVICE}/Feedback",
                protocol.feedback.message,
                feedback_pb2.FeedbackRequest,
            ),
            _plain(
                f"/{FEEDBACK_SERVICE}/Count",
                protocol.counting.message,
                feedback_pb2.CountRequest,
            ),
            *(_plain(f"/{SERVICE}/{name}", *how) for name, how in plain.items()),
        ]
        self.methods: Final[Mapping[str, Method]] = {method.name: method for method in methods}

    # --- models -----------------------------------------------------------------------------------

    def read(self, message: Buffer) -> InferRequest:
        """The request in the bytes of a ``ModelInferRequest``.

        Raises:
            MalformedMessageError: they are none.
        """
        return read_wire(message) or self.read_unusual(message)

    def read_unusual(self, message: Buffer) -> InferRequest:
        """The same by the generated classes, which takes its time for a large request. Raises like ``read``."""
        return MessageRequest(_parsed(oip.ModelInferRequest, message))

    def infer(
        self, request: InferRequest, remaining_s: Callable[[], float | None], *, waits: bool
    ) -> bytes:
        """Run a model; the bytes of a ``ModelInferResponse``. ``waits`` as in ``Question``.

        Raises:
            Exception: as ``InferenceProtocol.infer``; ``status_of`` has a code for each.
        """
        return self._protocol.infer(
            Question(
                request.model,
                request.version,
                request.decode,
                request.encode,
                request.outputs,
                request.parameters,
                request.id,
                remaining_s,
                waits,
            )
        )

    async def wait_held(self, model: str) -> None:
        """See ``InferenceProtocol.wait_held``. Raises NotReadyError."""
        await self._protocol.wait_held(model)

    # --- the others -------------------------------------------------------------------------------

    def _server_live(self, _request: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def _server_ready(self, _request: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._protocol.server_ready())

    def _model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        return oip.ModelReadyResponse(
            ready=self._protocol.model_ready(request.name, request.version)
        )

    def _server_metadata(self, _request: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        name, version, extensions = self._protocol.server_metadata()
        return oip.ServerMetadataResponse(name=name, version=version, extensions=extensions)

    def _model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        manifest, versions = self._protocol.model_metadata(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=manifest.model,
            versions=versions,
            platform=PLATFORM,
            inputs=[_tensor_metadata(spec) for spec in manifest.inputs],
            outputs=[_tensor_metadata(spec) for spec in manifest.outputs],
        )

    def _repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        response = oip.RepositoryIndexResponse()
        for entry in self._protocol.repository_index(ready=request.ready):
            response.models.add(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
        return response

    def _refuse_change(self, _request: Message) -> Message:
        """Load and unload are not for applications. Raises FleetDecidesError."""
        self._protocol.refuse_change()
        raise AssertionError("refused")


def streamed(response: bytes) -> bytes:
    """A ``ModelInferResponse`` as one answer of a stream."""
    return b"\x12" + length_prefixed(response + _FINAL)


def streamed_failure(error: Exception, request: InferRequest) -> bytes:
    """The answer of a stream to a request that failed; with its id, or a client with several requests under way
    could not tell whose it is."""
    _, text = fault_of(error, request.model)
    answer = oip.ModelStreamInferResponse(error_message=text)
    answer.infer_response.id = request.id
    answer.infer_response.parameters["triton_final_response"].bool_param = True
    return bytes(answer.SerializeToString())


def _final() -> bytes:
    response = oip.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = True
    return bytes(response.SerializeToString())


_FINAL: Final = _final()
"""What each answer of a stream carries: as bytes of a message, it may follow any other part of it."""


def _plain(name: str, answer: Callable[[Any], Message], request: type[Message]) -> Method:
    def from_bytes(message: Buffer) -> bytes:
        return bytes(answer(_parsed(request, message)).SerializeToString())

    return Method(name, Kind.PLAIN, from_bytes)


def _parsed(kind: type[Message], message: Buffer) -> Any:
    if has_more_fields(message, MAX_FIELDS):
        raise MalformedMessageError(
            f"the {kind.DESCRIPTOR.name} has more than the {MAX_FIELDS} fields that are taken"
        )
    try:
        return kind.FromString(bytes(message))
    except DecodeError as error:
        raise MalformedMessageError(f"the request is no {kind.DESCRIPTOR.name}") from error


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.shape
    )
