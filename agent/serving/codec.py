"""Between the protocol's gRPC messages and numpy arrays.

Rules kept here:

- Inputs come raw (all of them) or as typed contents (each of them), never mixed; the answer comes
  the same way.
- FP16 has no typed contents in the protocol, so it is always raw.
"""

from collections.abc import Mapping
from typing import Any, Final

from agent.runtime.dtypes import Array, dtype_of, from_raw, text_array, to_raw
from agent.runtime.errors import InputContractError
from agent.serving.protocol import (
    MAX_INPUTS,
    Answer,
    Parameter,
    refuse_tensor_parameters,
)
from agent.serving.values import check_count, numbers
from protos import inference_pb2 as oip

__all__ = ["decode_inputs", "encode_answer", "parameters_of"]

_CONTENTS: Final[Mapping[str, str]] = {
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
        name = tensor.name
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
    field = _CONTENTS.get(dtype)
    if field is None:
        raise InputContractError(
            f"tensor {name!r}: data type {dtype!r} has no typed contents; send it raw"
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


def encode_answer(answer: Answer, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """The response: raw, or as typed contents where the request came so and every output has
    them."""
    manifest = answer.manifest
    response = oip.ModelInferResponse(
        model_name=manifest.model, model_version=manifest.version, id=request.id
    )
    chosen = [(name, answer.arrays[name]) for name in answer.names]
    typed = not request.raw_input_contents and all(
        dtype_of(array) in _CONTENTS for _, array in chosen
    )
    for name, array in chosen:
        dtype = dtype_of(array)
        tensor = response.outputs.add(name=name, datatype=dtype, shape=array.shape)
        if not typed:
            response.raw_output_contents.append(to_raw(array))
        elif dtype == "BYTES":
            tensor.contents.bytes_contents.extend(str(value).encode() for value in array.flat)
        else:
            getattr(tensor.contents, _CONTENTS[dtype]).extend(array.reshape(-1).tolist())
    return response
