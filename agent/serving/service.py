"""The Open Inference Protocol over gRPC: what each method answers.

Rules kept here:

- Errors carry the protocol's codes: NOT_FOUND (no such model or version), INVALID_ARGUMENT (the
  contract is broken), UNAVAILABLE (loaded, not answering), DEADLINE_EXCEEDED (the run took too
  long), INTERNAL (the model failed).
- Broken inputs are refused and counted apart from failures. Broken or non-finite outputs are
  counted and answered.
- Which versions run is the fleet's decision: loading and unloading over the protocol is refused.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import grpc

from agent import __version__
from agent.bundle import Manifest, TensorSpec
from agent.runtime.contract import check_inputs, check_outputs
from agent.runtime.errors import (
    InferenceError,
    InputContractError,
    NotReadyError,
    RequestError,
    UnknownServableError,
)
from agent.runtime.registry import Registry
from agent.runtime.servable import Handle, ServableState
from agent.serving.codec import decode_inputs, encode_outputs
from agent.serving.watchdog import RunWatchdog
from protos import inference_pb2 as oip

__all__ = ["SERVICE", "InferenceService"]

SERVICE: Final = "inference.GRPCInferenceService"
PLATFORM: Final = "onnxruntime_onnx"
_STATES: Final = {
    ServableState.ACTIVE: ("READY", ""),
    ServableState.PREVIOUS: ("READY", "not active: answers only requests that name its version"),
    ServableState.CANDIDATE: ("UNAVAILABLE", "loaded, not active yet"),
    ServableState.RETIRED: ("UNAVAILABLE", "being unloaded"),
}
_CODES: Final = {
    UnknownServableError: grpc.StatusCode.NOT_FOUND,
    NotReadyError: grpc.StatusCode.UNAVAILABLE,
    InputContractError: grpc.StatusCode.INVALID_ARGUMENT,
}
_UNSUPPORTED_OUTPUT: Final = ("classification", "shared_memory_region")
_log = logging.getLogger(__name__)


class InferenceService:
    """Answers requests from a registry; ``handler`` registers it under the protocol's own service
    name."""

    def __init__(self, registry: Registry, watchdog: RunWatchdog) -> None:
        self._registry = registry
        self._watchdog = watchdog

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
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    method,
                    request_deserializer=request.FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for name, (method, request) in methods.items()
            },
        )

    def model_infer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        """Run a model on one request."""
        began_s = time.perf_counter()
        try:
            with self._registry.acquire(request.model_name, request.model_version) as handle:
                return self._infer(handle, request, context, began_s)
        except RequestError as error:
            return _abort(context, _CODES[type(error)], str(error))
        except InferenceError as error:
            late = error.kind == "timeout"
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.INTERNAL
            return _abort(context, code, f"model {request.model_name!r}: {error}")
        except Exception as error:  # noqa: BLE001 one bad request must not look like a lost server
            _log.exception("model %r: unexpected error", request.model_name)
            text = f"model {request.model_name!r}: unexpected {type(error).__name__}"
            return _abort(context, grpc.StatusCode.INTERNAL, text)

    def _infer(
        self, handle: Handle, request: oip.ModelInferRequest, context: Any, began_s: float
    ) -> oip.ModelInferResponse:
        """Counts everything while the lease is held: the counters of a version end with its last
        lease."""
        servable = handle.servable
        manifest, counters = servable.manifest, servable.counters
        try:
            names = _requested_outputs(request, manifest)
            inputs = decode_inputs(request)
            check_inputs(manifest.inputs, inputs)
        except InputContractError:
            counters.refused()
            raise
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            # It waited too long for a thread. Nobody listens any more, so nothing is run or counted.
            return _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the caller's time is over")
        try:
            with self._watchdog.watch(remaining_s, counters.objective_s) as options:
                outputs = handle.pipeline.run(inputs, options)
        except InferenceError as error:
            counters.failed(error.kind)
            raise
        except Exception:
            counters.failed("unexpected")
            raise
        findings = check_outputs(manifest.outputs, outputs)
        response = oip.ModelInferResponse(
            model_name=manifest.model, model_version=manifest.version, id=request.id
        )
        encode_outputs(response, outputs, names, typed=not request.raw_input_contents)
        counters.answered(
            time.perf_counter() - began_s,
            violations=bool(findings.violations),
            non_finite=bool(findings.non_finite),
        )
        return response

    def server_live(self, _request: oip.ServerLiveRequest, _context: Any) -> oip.ServerLiveResponse:
        """The process answers."""
        return oip.ServerLiveResponse(live=True)

    def server_ready(
        self, _request: oip.ServerReadyRequest, _context: Any
    ) -> oip.ServerReadyResponse:
        """Every model that is loaded has an active version."""
        ready = all(self._is_ready(name, "") for name in self._registry.names())
        return oip.ServerReadyResponse(ready=ready)

    def model_ready(self, request: oip.ModelReadyRequest, _context: Any) -> oip.ModelReadyResponse:
        """The model (version) would answer now; an unknown one would not."""
        return oip.ModelReadyResponse(ready=self._is_ready(request.name, request.version))

    def server_metadata(
        self, _request: oip.ServerMetadataRequest, _context: Any
    ) -> oip.ServerMetadataResponse:
        """Name and version of the server."""
        return oip.ServerMetadataResponse(name="muster", version=__version__)

    def model_metadata(
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        """The contract of a model."""
        try:
            with self._registry.acquire(request.name, request.version) as handle:
                manifest = handle.servable.manifest
        except RequestError as error:
            return _abort(context, _CODES[type(error)], str(error))
        versions = [
            servable.manifest.version
            for servable in self._registry.versions(request.name)
            if servable.state in (ServableState.ACTIVE, ServableState.PREVIOUS)
        ]
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
        for name in self._registry.names():
            for servable in self._registry.versions(name):
                state, reason = _STATES[servable.state]
                if state == "READY" or not request.ready:
                    response.models.add(
                        name=name, version=servable.manifest.version, state=state, reason=reason
                    )
        return response

    def refuse_change(self, _request: Any, context: Any) -> NoReturn:
        """Load and unload: not for applications."""
        _abort(
            context,
            grpc.StatusCode.PERMISSION_DENIED,
            "the fleet decides which bundles run on this device; change it with a rollout",
        )

    def _is_ready(self, name: str, version: str) -> bool:
        try:
            with self._registry.acquire(name, version):
                return True
        except RequestError:  # unknown or not active: the answer to the question
            return False


def _requested_outputs(request: oip.ModelInferRequest, manifest: Manifest) -> Sequence[str]:
    """Names of the outputs to answer, all of the contract's where none are asked for."""
    known = [spec.name for spec in manifest.outputs]
    if not request.outputs:
        return known
    names: list[str] = []
    for output in request.outputs:
        if output.name not in known:
            raise InputContractError(f"there is no output {output.name!r}; the model has {known}")
        for parameter in _UNSUPPORTED_OUTPUT:
            if parameter in output.parameters:
                raise InputContractError(f"output {output.name!r}: {parameter} is not supported")
        names.append(output.name)
    return names


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.shape
    )


def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    """End the call with a status."""
    context.abort(code, text)
    raise AssertionError("abort raises")
