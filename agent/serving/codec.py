"""Between the protocol's gRPC messages and numpy arrays.

Rules kept here:

- Inputs come raw (all of them) or as typed contents (each of them), never mixed; the answer comes
  the same way.
- FP16 has no typed contents in the protocol, so it is always raw.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.runtime.dtypes import Array, dtype_of, from_raw, text_array, to_raw
from agent.runtime.errors import InputContractError
from agent.serving.protocol import (
    MAX_INPUTS,
    Answer,
    Parameter,
    refuse_tensor_parameters,
)
from agent.serving.values import check_count, check_name, numbers
from protos import inference_pb2 as oip

__all__ = ["TYPED_CONTENTS", "MessageRequest", "decode_inputs", "encode_answer", "parameters_of"]

TYPED_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode_inputs(request: oip.ModelInferRequest) -> dict[str, Array]:
    """The request's inputs by name. Refuses on the way what is asked for and not done here.

    Raises:
        InputContractError: names, types, shapes and bytes do not fit together.
    """
    tensors = request.inputs
    raw = request.raw_input_contents
    if len(tensors) > MAX_INPUTS:
        raise InputContractError(
            f"{len(tensors)} inputs are more than the {MAX_INPUTS} that are taken"
        )
    for kind, described in (("input", tensors), ("output", request.outputs)):
        for tensor in described:
            if tensor.parameters:
                refuse_tensor_parameters(kind, tensor.name, tensor.parameters)
    if raw and len(raw) != len(tensors):
        raise InputContractError(
            f"{len(tensors)} inputs came with {len(raw)} raw contents; there must be one for each"
        )
    arrays: dict[str, Array] = {}
    for i, tensor in enumerate(tensors):
        name = check_name(tensor.name, "input")
        if name in arrays:
            raise InputContractError(f"input {name!r} came twice")
        if raw:
            if tensor.HasField("contents"):
                raise InputContractError(
                    f"input {name!r} came raw and as typed contents; use one of them"
                )
            arrays[name] = from_raw(raw[i], tensor.datatype, tensor.shape, name)
        else:
            arrays[name] = _from_contents(tensor)
    return arrays


def _from_contents(tensor: oip.ModelInferRequest.InferInputTensor) -> Array:
    name, dtype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    field = TYPED_CONTENTS.get(dtype)
    if field is None:
        raise InputContractError(
            f"tensor {name!r}: data type {dtype[:40]!r} has no typed contents; send it raw"
        )
    values = getattr(tensor.contents, field)
    check_count(len(values), shape, name, field)
    if dtype == "BYTES":
        return text_array(values, shape, name)
    return numbers(values, dtype, shape, name)


def parameters_of(parameters: Mapping[str, Any]) -> Mapping[str, Parameter]:
    """A message's parameters as plain values; those without a value are left out."""
    found: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def encode_answer(answer: Answer, request_id: str, *, raw: bool) -> oip.ModelInferResponse:
    """The response: raw, or as typed contents where the request came so (not ``raw``) and every output has them."""
    manifest = answer.manifest
    response = oip.ModelInferResponse(
        model_name=manifest.model, model_version=manifest.version, id=request_id
    )
    chosen = [(name, answer.arrays[name]) for name in answer.names]
    typed = not raw and all(dtype_of(array) in TYPED_CONTENTS for _, array in chosen)
    for name, array in chosen:
        dtype = dtype_of(array)
        tensor = response.outputs.add(name=name, datatype=dtype, shape=array.shape)
        if not typed:
            response.raw_output_contents.append(to_raw(array))
        elif dtype == "BYTES":
            tensor.contents.bytes_contents.extend(str(value).encode() for value in array.flat)
        else:
            getattr(tensor.contents, TYPED_CONTENTS[dtype]).extend(array.reshape(-1).tolist())
    return response


class MessageRequest:
    """A request read by the generated classes: every shape that the protocol allows.

    ``agent.serving.infer_wire.WireRequest`` is the same for the usual shapes.
    """

    __slots__ = ("_message", "id", "model", "outputs", "parameters", "servable_sha256", "version")

    def __init__(self, message: oip.ModelInferRequest) -> None:
        self._message = message
        self.model: str = message.model_name
        self.version: str = message.model_version
        self.id: str = message.id
        self.outputs: Sequence[str] = [output.name for output in message.outputs]
        self.parameters = parameters_of(message.parameters) if message.parameters else {}
        self.servable_sha256 = ""
        """Who answered, once it is encoded."""

    def decode(self) -> dict[str, Array]:
        """The inputs by name. Raises InputContractError."""
        return decode_inputs(self._message)

    def encode(self, answer: Answer) -> bytes:
        """The answer as bytes of a ``ModelInferResponse``."""
        self.servable_sha256 = answer.servable_sha256
        raw = bool(self._message.raw_input_contents)
        return bytes(encode_answer(answer, self.id, raw=raw).SerializeToString())
