"""The Open Inference Protocol over gRPC: its methods, messages and status codes.

Rules kept here:

- What is answered is ``agent.serving.protocol``'s; here are only messages and codes.
- A stream answers its requests in order, one answer each; a request that fails is answered with its
  error and ends nothing. Streams have threads of their own, a bounded number: an idle stream takes
  none from single requests.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

import grpc

from agent.bundle import TensorSpec
from agent.runtime.errors import RequestError
from agent.serving.codec import decode_inputs, encode_answer, parameters_of
from agent.serving.errors import FleetDecidesError, OverloadError
from agent.serving.protocol import PLATFORM, Fault, InferenceProtocol, Question, fault_of
from protos import inference_pb2 as oip

__all__ = ["CODES", "MAX_STREAMS", "SERVICE", "InferenceService"]

SERVICE: Final = "inference.GRPCInferenceService"
MAX_STREAMS: Final = 32
CODES: Final[Mapping[Fault, grpc.StatusCode]] = {
    Fault.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Fault.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Fault.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Fault.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Fault.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.INTERNAL: grpc.StatusCode.INTERNAL,
}


class InferenceService:
    """Answers over gRPC; ``handler`` registers it under the protocol's own service name."""

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._stream_threads = ThreadPoolExecutor(MAX_STREAMS + 1, thread_name_prefix="stream")

    def handler(self) -> Any:
        """The generic handler for ``grpc.Server.add_generic_rpc_handlers``."""
        methods: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
            "ServerLive": (self.server_live, oip.ServerLiveRequest),
            "ServerReady": (self.server_ready, oip.ServerReadyRequest),
            "ModelReady": (self.model_ready, oip.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, oip.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, oip.ModelMetadataRequest),
            "ModelInfer": (self.model_infer, oip.ModelInferRequest),
            "RepositoryIndex": (self.repository_index, oip.RepositoryIndexRequest),
            "RepositoryModelLoad": (self.refuse_change, oip.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self.refuse_change, oip.RepositoryModelUnloadRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (method, request) in methods.items()
        }
        handlers["ModelStreamInfer"] = self._stream_handler()
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def feedback_handler(self) -> Any:
        """The generic handler of the feedback service."""
        return self._protocol.feedback.handler(self._protocol.counting.message)

    def _stream_handler(self) -> Any:
        def stream(requests: Any, context: Any) -> Iterator[oip.ModelStreamInferResponse]:
            return self.model_stream_infer(requests, context)

        # grpcio's way to give a method threads of its own. Were it ignored, streams would share the
        # others' threads: slower, not wrong.
        stream.experimental_thread_pool = self._stream_threads  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=oip.ModelInferRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def model_infer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        """Run a model on one request."""
        try:
            return self._protocol.infer(_question(request, context.time_remaining))
        except Exception as error:  # noqa: BLE001 each has its code; unknown ones are logged there
            return _abort(context, error, request.model_name)

    def model_stream_infer(
        self, requests: Iterator[oip.ModelInferRequest], context: Any
    ) -> Iterator[oip.ModelStreamInferResponse]:
        """Run a model on each request of a stream."""
        if not self._streams.acquire(blocking=False):
            _abort(context, OverloadError(f"{MAX_STREAMS} streams are open, no more fit"), "")
        try:
            # The iterator raises when the caller goes away: then nobody is left to answer.
            with contextlib.suppress(grpc.RpcError):
                for request in requests:
                    yield self._streamed(request, context)
        finally:
            self._streams.release()

    def _streamed(
        self, request: oip.ModelInferRequest, context: Any
    ) -> oip.ModelStreamInferResponse:
        try:
            response = self._protocol.infer(_question(request, context.time_remaining))
        except Exception as error:  # noqa: BLE001 answered; unknown ones are logged in fault_of
            _, text = fault_of(error, request.model_name)
            answer = oip.ModelStreamInferResponse(error_message=text)
            # With the id, or a client with several requests under way could not tell whose it is.
            answer.infer_response.id = request.id
        else:
            answer = oip.ModelStreamInferResponse(infer_response=response)
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    def server_live(self, _request: oip.ServerLiveRequest, _context: Any) -> oip.ServerLiveResponse:
        """The process answers."""
        return oip.ServerLiveResponse(live=True)

    def server_ready(
        self, _request: oip.ServerReadyRequest, _context: Any
    ) -> oip.ServerReadyResponse:
        """Every model that is loaded has an active version."""
        return oip.ServerReadyResponse(ready=self._protocol.server_ready())

    def model_ready(self, request: oip.ModelReadyRequest, _context: Any) -> oip.ModelReadyResponse:
        """The model (version) would answer now; an unknown one would not."""
        return oip.ModelReadyResponse(
            ready=self._protocol.model_ready(request.name, request.version)
        )

    def server_metadata(
        self, _request: oip.ServerMetadataRequest, _context: Any
    ) -> oip.ServerMetadataResponse:
        """Name and version of the server, and what it can beyond the protocol."""
        name, version, extensions = self._protocol.server_metadata()
        return oip.ServerMetadataResponse(name=name, version=version, extensions=extensions)

    def model_metadata(
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        """The contract of a model."""
        try:
            manifest, versions = self._protocol.model_metadata(request.name, request.version)
        except RequestError as error:
            return _abort(context, error, request.name)
        return oip.ModelMetadataResponse(
            name=manifest.model,
            versions=versions,
            platform=PLATFORM,
            inputs=[_tensor_metadata(spec) for spec in manifest.inputs],
            outputs=[_tensor_metadata(spec) for spec in manifest.outputs],
        )

    def repository_index(
        self, request: oip.RepositoryIndexRequest, _context: Any
    ) -> oip.RepositoryIndexResponse:
        """Every loaded version and whether it answers."""
        response = oip.RepositoryIndexResponse()
        for entry in self._protocol.repository_index(ready=request.ready):
            response.models.add(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
        return response

    def refuse_change(self, request: Any, context: Any) -> None:
        """Load and unload: not for applications."""
        try:
            self._protocol.refuse_change()
        except FleetDecidesError as error:
            _abort(context, error, request.model_name)


def _question(
    request: oip.ModelInferRequest, remaining_s: Callable[[], float | None]
) -> Question[oip.ModelInferResponse]:
    return Question(
        model=request.model_name,
        version=request.model_version,
        decode=lambda: decode_inputs(request),
        encode=lambda answer: encode_answer(answer, request),
        outputs=[output.name for output in request.outputs],
        parameters=parameters_of(request.parameters) if request.parameters else {},
        request_id=request.id,
        remaining_s=remaining_s,
    )


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.shape
    )


def _abort(context: Any, error: Exception, model: str) -> NoReturn:
    """End the call with the status that the error has."""
    fault, text = fault_of(error, model)
    context.abort(CODES[fault], text)
    raise AssertionError("abort raises")
