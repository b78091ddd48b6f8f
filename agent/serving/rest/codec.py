"""Between the protocol's JSON, its binary tensor extension and numpy arrays.

Rules kept here:

- ``Inference-Header-Content-Length`` says how many bytes of the body are JSON; the tensors with a
  ``binary_data_size`` follow in the inputs' order and fill the rest exactly.
- Data in JSON is row-major, flat or nested; nested data has the shape that is claimed.
- An output is binary when its own ``binary_data`` says so, else when the request's
  ``binary_data_output`` does.
- Keys that nobody here knows are ignored, as the protocol wants; keys that are known are checked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from agent.runtime.dtypes import (
    MAX_DIMENSIONS,
    NUMPY_OF,
    Array,
    dtype_of,
    from_raw,
    text_array,
    to_raw,
)
from agent.runtime.errors import InputContractError
from agent.serving.protocol import MAX_INPUTS, Answer, Parameter, refuse_tensor_parameters
from agent.serving.rest.json_text import dump, load, values_of
from agent.serving.values import check_count, check_name, numbers

__all__ = ["HEADER_LENGTH", "InferRequest", "Payload", "parse_request"]

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_SIZE: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Payload:
    """The body of an answer; ``header_length`` where binary tensors follow the JSON."""

    body: bytes
    header_length: int | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request's JSON, checked as far as every model needs it, and its binary tail."""

    id: str
    parameters: Mapping[str, Parameter]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[str]
    binary: Mapping[str, bool]
    """By output, where the request says."""
    binary_default: bool
    tail: memoryview
    """What follows the JSON."""

    def decode(self) -> dict[str, Array]:
        """The inputs by name.

        Raises:
            InputContractError: names, types, shapes, values and bytes do not fit together.
        """
        arrays: dict[str, Array] = {}
        at = 0
        for tensor in self.inputs:
            name, dtype, shape = _described(tensor)
            if name in arrays:
                raise InputContractError(f"input {name!r} came twice")
            size = _binary_size(tensor, name)
            if size is None:
                arrays[name] = _from_json(tensor, name, dtype, shape)
                continue
            if "data" in tensor:
                raise InputContractError(
                    f"input {name!r} came binary and as JSON data; use one of them"
                )
            if at + size > len(self.tail):
                raise InputContractError(
                    f"input {name!r}: binary_data_size {size} goes beyond the body"
                )
            arrays[name] = _from_binary(self.tail[at : at + size], name, dtype, shape)
            at += size
        if at != len(self.tail):
            raise InputContractError(
                f"{len(self.tail) - at} bytes follow the last binary input: {HEADER_LENGTH} or a "
                f"binary_data_size is wrong"
            )
        return arrays

    def encode(self, answer: Answer) -> Payload:
        """The answer's body."""
        outputs: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for name in answer.names:
            array = answer.arrays[name]
            described: dict[str, Any] = {
                "name": name,
                "datatype": dtype_of(array),
                "shape": list(array.shape),
            }
            if self.binary.get(name, self.binary_default):
                raw = to_raw(array)
                described["parameters"] = {"binary_data_size": len(raw)}
                tail.append(raw)
            else:
                described["data"] = values_of(array)
            outputs.append(described)
        said: dict[str, Any] = {
            "model_name": answer.manifest.model,
            "model_version": answer.manifest.version,
        }
        if self.id:
            said["id"] = self.id
        said["outputs"] = outputs
        head = dump(said)
        if not tail:
            return Payload(head)
        return Payload(b"".join((head, *tail)), len(head))


def parse_request(body: bytes, header_length: int | None) -> InferRequest:
    """The request in a body.

    Raises:
        InputContractError: it is not a request of the protocol; says which key is wrong.
    """
    if header_length is not None and header_length > len(body):
        raise InputContractError(
            f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes"
        )
    view = memoryview(body)
    split = len(body) if header_length is None else header_length
    try:
        said = load(body if split == len(body) else bytes(view[:split]))
    except (ValueError, RecursionError) as error:
        raise InputContractError(f"the request is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise InputContractError("the request must be a JSON object")
    inputs = _objects(said, "inputs")
    if not inputs:
        raise InputContractError("'inputs' is missing or empty")
    requested = _objects(said, "outputs")
    if len(inputs) > MAX_INPUTS or len(requested) > MAX_INPUTS:
        raise InputContractError(f"more than the {MAX_INPUTS} inputs or outputs that are taken")
    parameters = _parameters(said, "the request")
    names, binary = _outputs(requested)
    return InferRequest(
        id=_text(said, "id", "the request", default=""),
        parameters=parameters,
        inputs=inputs,
        outputs=names,
        binary=binary,
        binary_default=_flag(parameters, "binary_data_output", "the request") or False,
        tail=view[split:],
    )


def _outputs(requested: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], Mapping[str, bool]]:
    names: list[str] = []
    binary: dict[str, bool] = {}
    for output in requested:
        name = check_name(_text(output, "name", "an output"), "output")
        parameters = _parameters(output, f"output {name!r}")
        refuse_tensor_parameters("output", name, parameters)
        names.append(name)
        wanted = _flag(parameters, "binary_data", f"output {name!r}")
        if wanted is not None:
            binary[name] = wanted
    return names, binary


def _described(tensor: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Name, data type and shape of an input."""
    name = check_name(_text(tensor, "name", "an input"), "input")
    dtype = _text(tensor, "datatype", f"input {name!r}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(
        type(dim) is int and 0 <= dim <= MAX_SIZE for dim in shape
    ):
        raise InputContractError(
            f"input {name!r}: 'shape' must be a list of sizes, got {_short(shape)}"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise InputContractError(f"input {name!r}: more than {MAX_DIMENSIONS} dimensions")
    return name, dtype, tuple(shape)


def _binary_size(tensor: Mapping[str, Any], name: str) -> int | None:
    if "parameters" not in tensor:
        return None
    parameters = _parameters(tensor, f"input {name!r}")
    refuse_tensor_parameters("input", name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InputContractError(f"input {name!r}: binary_data_size must be a number of bytes")
    return size


def _from_binary(data: memoryview, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "BYTES":
        return from_raw(bytes(data), dtype, shape, name)
    array = from_raw(data, dtype, shape, name)  # type: ignore[arg-type]  # read like bytes
    # The JSON before it has any length; native code wants numbers where the processor does.
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype not in NUMPY_OF:
        raise InputContractError(
            f"tensor {name!r}: data type {dtype[:40]!r} is unknown; known are {', '.join(NUMPY_OF)}"
        )
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InputContractError(f"input {name!r}: 'data' must be a list, got {_short(data)}")
    flat = _flattened(data, shape, name)
    check_count(len(flat), shape, name, "'data'")
    if dtype != "BYTES":
        return numbers(flat, dtype, shape, name)
    if not set(map(type, flat)) <= {str}:
        raise InputContractError(f"tensor {name!r}: the values of BYTES in JSON must be text")
    try:
        return text_array([value.encode() for value in flat], shape, name)
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise InputContractError(f"tensor {name!r}: a value is not Unicode text") from error


def _flattened(data: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """The values in row-major order. Nested lists must have the shape."""
    depth = 0
    level: list[Any] = data
    while level and type(level[0]) is list:
        depth += 1
        wanted = shape[depth] if depth < len(shape) else -1
        if not all(type(row) is list and len(row) == wanted for row in level):
            raise InputContractError(
                f"tensor {name!r}: the nested data does not have the shape {list(shape)}"
            )
        level = list(chain.from_iterable(level))
    if depth and (depth + 1 != len(shape) or len(data) != shape[0]):
        # Empty rows end the nesting early: then there is nothing in it at all.
        if not level and math.prod(shape) == 0:
            return level
        raise InputContractError(
            f"tensor {name!r}: the nested data does not have the shape {list(shape)}"
        )
    return level


def _objects(said: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = said.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputContractError(f"{key!r} must be a list of objects, got {_short(found)}")
    return found


def _parameters(said: Mapping[str, Any], where: str) -> Mapping[str, Parameter]:
    found = said.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputContractError(f"{where}: 'parameters' must be an object, got {_short(found)}")
    for name, value in found.items():
        if not isinstance(value, bool | int | float | str):
            raise InputContractError(
                f"{where}: parameter {name[:80]!r} must be text, a number, true or false"
            )
    return found


def _flag(parameters: Mapping[str, Parameter], name: str, where: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise InputContractError(f"{where}: parameter {name!r} must be true or false")


def _text(said: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = said.get(key, default)
    if not isinstance(value, str):
        raise InputContractError(f"{where}: {key!r} must be text, got {_short(value)}")
    return value


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    try:
        text = json.dumps(value)
    except RecursionError:  # read with fewer frames on the stack than there are now
        return "something nested too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."
