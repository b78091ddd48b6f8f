"""Between the protocol's messages and numpy arrays.

Rules kept here:

- Inputs come raw (all of them) or as typed contents (each of them), never mixed; the answer comes
  the same way.
- FP16 has no typed contents in the protocol, so it is always raw.
- Counts are checked against the shape before an array is made.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from agent.runtime.dtypes import NUMPY_OF, Array, dtype_of, from_raw, text_array, to_raw
from agent.runtime.errors import InputContractError
from protos import inference_pb2 as oip

__all__ = ["MAX_INPUTS", "decode_inputs", "encode_outputs"]

MAX_INPUTS: Final = 256
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
    """The request's inputs by name.

    Raises:
        InputContractError: names, types, shapes and bytes do not fit together.
    """
    tensors = request.inputs
    raw = request.raw_input_contents
    if len(tensors) > MAX_INPUTS:
        raise InputContractError(
            f"{len(tensors)} inputs are more than the {MAX_INPUTS} that are taken"
        )
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
    if any(dim < 0 for dim in shape) or len(values) != math.prod(shape):
        raise InputContractError(
            f"tensor {name!r}: shape {list(shape)} does not fit the {len(values)} values in {field}"
        )
    if dtype == "BYTES":
        return text_array(values, shape, name)
    try:
        return np.array(values, dtype=NUMPY_OF[dtype]).reshape(shape)
    except OverflowError as error:
        raise InputContractError(f"tensor {name!r}: a value does not fit {dtype}") from error


def encode_outputs(
    response: oip.ModelInferResponse,
    outputs: Mapping[str, Array],
    names: Iterable[str],
    *,
    typed: bool,
) -> None:
    """Put the outputs named into the response, raw or (``typed``) as typed contents where there are
    any."""
    chosen: Sequence[tuple[str, Array]] = [(name, outputs[name]) for name in names]
    typed = typed and all(dtype_of(array) in _CONTENTS for _, array in chosen)
    for name, array in chosen:
        dtype = dtype_of(array)
        tensor = response.outputs.add(name=name, datatype=dtype, shape=array.shape)
        if not typed:
            response.raw_output_contents.append(to_raw(array))
        elif dtype == "BYTES":
            tensor.contents.bytes_contents.extend(str(value).encode() for value in array.flat)
        else:
            getattr(tensor.contents, _CONTENTS[dtype]).extend(array.reshape(-1).tolist())
