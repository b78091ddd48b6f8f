"""The servers that are compared: how each is installed, started, asked and looked at.

Rules kept here:

- Each server serves one model, on ports of its own, with its own defaults except where a default would only slow it:
  MLServer runs in one process (its inference pool costs it more than it gains here) and without debug logging, MLflow
  has one worker. onnxruntime is of one version everywhere, with one thread inside an operator.
- Every way into a server has one prepared request, in the cheapest form that this way takes, and a reading of its
  answer for comparing it with onnxruntime's own.
- A server that cannot be had is left out with the reason.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import psutil

from benchmarks.memory import alone_bytes
from benchmarks.peers.muster_server import REST_FRONT
from benchmarks.serving_models import OIP_TYPES, VERSION, Workload
from benchmarks.wire import Target, ask_once
from protos import inference_pb2 as oip
from tests.support.daemon import free_port

__all__ = [
    "KINDS",
    "Running",
    "Unavailable",
    "Way",
    "grpc_way",
    "prepare",
    "rest_binary_way",
    "start",
]

PEERS: Final = Path(__file__).parent / "peers"
REQUIRES: Final = {
    "mlserver": ("mlserver==1.7.1",),
    "mlflow": ("mlflow==3.17.2", "onnx"),
}
KINDS: Final = ("muster", "mlserver", "mlflow")
START_S: Final = 90.0
JSON: Final = ("Content-Type", "application/json")


class Unavailable(Exception):
    """A server cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way into a server. ``read`` makes arrays of an answer's body."""

    name: str
    target: Target
    read: Callable[[bytes], Mapping[str, Any]]


@dataclass(slots=True)
class Running:
    """A started server. ``pids`` are the processes whose memory counts, with their children."""

    process: "subprocess.Popen[str]"
    ways: Sequence[Way]
    grpc_port: int = 0
    pids: Sequence[int] = ()
    start_s: float = 0.0
    log: Path = field(default=Path())

    def memory_bytes(self) -> float:
        """PSS of every process of the server, as if they were alone on the machine."""
        roots = [psutil.Process(pid) for pid in self.pids]
        everyone = {p.pid: p for root in roots for p in (root, *root.children(recursive=True))}
        return sum(alone_bytes(list(everyone)).values())

    def stop(self) -> None:
        """End it and what it started."""
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
        if self.process.stdin is not None:
            self.process.stdin.close()
        else:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def prepare(kind: str, cache: Path) -> Path:
    """The interpreter that runs this kind of server, in a virtual environment of its own, made at the first use.

    Raises:
        Unavailable: it cannot be installed.
    """
    if kind == "muster":
        return Path(sys.executable)
    venv = cache / f"{kind}-venv"
    python = venv / "bin" / "python"
    done = venv / f"installed-{onnxruntime.__version__}"
    if done.exists():
        return python
    wanted = [*REQUIRES[kind], f"onnxruntime=={onnxruntime.__version__}"]
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", *wanted],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"{kind} cannot be installed: {last[0][:200]}")
    done.touch()
    return python


def start(kind: str, python: Path, workload: Workload, folder: Path) -> Running:
    """Start a server with one model and wait for its first answer, which has to be right.

    Raises:
        Unavailable: it does not start, does not answer, or answers something else than onnxruntime.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{kind}.log"
    began_s = time.perf_counter()
    with log.open("w") as out:
        running = _STARTERS[kind](python, workload, folder, out)
    running.log = log
    try:
        _await_answer(running, began_s)
        for way in running.ways:
            _check(kind, workload, way)
    except Unavailable:
        running.stop()
        raise
    if not running.pids:
        running.pids = (running.process.pid,)
    return running


def _await_answer(running: Running, began_s: float) -> None:
    """Ask until there is an answer; sets ``start_s``."""
    target = running.ways[0].target
    while time.perf_counter() - began_s < START_S:
        with suppress(OSError):
            if ask_once(target):
                running.start_s = time.perf_counter() - began_s
                return
        if running.process.poll() is not None:
            break
        time.sleep(0.01)
    raise Unavailable(f"no answer: {_last_words(running.log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing in its log"


def _check(kind: str, workload: Workload, way: Way) -> None:
    """The answer is onnxruntime's own."""
    body = ask_once(way.target)
    if not body:
        raise Unavailable(f"{kind} refuses the request over {way.name}")
    got = way.read(body)
    for name, expected in workload.expected.items():
        if name not in got:
            raise Unavailable(f"{kind} leaves out {name} over {way.name}; it has {list(got)}")
        array = np.asarray(got[name]).reshape(expected.shape)
        if not np.allclose(array, expected, rtol=1e-3, atol=1e-4):
            raise Unavailable(f"{kind} answers another {name} over {way.name}")


def _run(command: Sequence[str], folder: Path, out: Any, **more: Any) -> "subprocess.Popen[str]":
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        **more.pop("env", {}),
    }
    options: dict[str, Any] = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL, **more}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, **options)


# --- the servers ----------------------------------------------------------------------------------


def _muster(python: Path, workload: Workload, folder: Path, out: Any) -> Running:
    grpc_port, rest_port = free_port(), free_port() if REST_FRONT is not None else 0
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [
            str(python), "-m", "benchmarks.peers.muster_server", str(workload.bundle),
            workload.manifest_sha256, str(grpc_port), str(rest_port),
        ],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise Unavailable(f"muster does not start: {_last_words(folder / 'muster.log')}")
    ways = [grpc_way(workload, grpc_port)]
    if rest_port:
        ways += [rest_binary_way(workload, rest_port), _rest_json_way(workload, rest_port)]
    return Running(process, ways, grpc_port, pids=(json.loads(line)["pid"],))


def _mlserver(python: Path, workload: Workload, folder: Path, out: Any) -> Running:
    http_port, grpc_port = free_port(), free_port()
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port,
        "metrics_port": free_port(), "parallel_workers": 0,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": workload.name,
        "implementation": "mlserver_onnx.OnnxRuntime",
        "parameters": {"uri": str(workload.onnx.absolute()), "version": VERSION},
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    process = _run(
        [str(python.parent / "mlserver"), "start", "."], folder, out, env={"PYTHONPATH": str(PEERS)}
    )
    ways = [grpc_way(workload, grpc_port), _rest_json_way(workload, http_port)]
    return Running(process, ways, grpc_port)


def _mlflow(python: Path, workload: Workload, folder: Path, out: Any) -> Running:
    saved = folder / f"{workload.name}-mlflow"
    if not saved.exists():
        described = folder / "inputs.json"
        described.write_text(
            json.dumps([(n, str(v.dtype), list(v.shape)) for n, v in workload.inputs.items()])
        )
        command = [str(python), str(PEERS / "mlflow_save.py"), str(workload.onnx.absolute())]
        ran = subprocess.run(
            [*command, str(described), str(saved)], capture_output=True, text=True, check=False,
            cwd=folder, timeout=300,
        )  # fmt: skip
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"MLflow does not save this model: {last[0][:200]}")
    port = free_port()
    process = _run(
        [
            str(python), "-m", "mlflow", "models", "serve", "-m", str(saved), "-h", "127.0.0.1",
            "-p", str(port), "--env-manager", "local", "--workers", "1",
        ],
        folder, out,
        env={"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    body = {"inputs": {name: value.tolist() for name, value in workload.inputs.items()}}
    target = Target("rest", port, json.dumps(body).encode(), "/invocations", (JSON,))
    return Running(process, [Way("REST JSON", target, _read_mlflow)])


_STARTERS: Final[Mapping[str, Callable[[Path, Workload, Path, Any], Running]]] = {
    "muster": _muster,
    "mlserver": _mlserver,
    "mlflow": _mlflow,
}


# --- requests and answers -------------------------------------------------------------------------


def grpc_way(workload: Workload, port: int) -> Way:
    """The request over gRPC, raw."""
    request = oip.ModelInferRequest(model_name=workload.name)
    for name, value in workload.inputs.items():
        request.inputs.add(name=name, datatype=OIP_TYPES[str(value.dtype)], shape=value.shape)
        request.raw_input_contents.append(value.tobytes())
    return Way("gRPC", Target("grpc", port, request.SerializeToString()), _read_grpc)


def _rest_json_way(workload: Workload, port: int) -> Way:
    tensors = [
        {**_described(name, value), "data": value.reshape(-1).tolist()}
        for name, value in workload.inputs.items()
    ]
    body = json.dumps({"inputs": tensors}).encode()
    target = Target("rest", port, body, _infer_path(workload), (JSON,))
    return Way("REST JSON", target, _read_oip_json)


def rest_binary_way(workload: Workload, port: int) -> Way:
    """The request over REST with the binary tensor extension."""
    tensors = [
        {**_described(name, value), "parameters": {"binary_data_size": value.nbytes}}
        for name, value in workload.inputs.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(value.tobytes() for value in workload.inputs.values())
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", str(len(head))),
    )
    target = Target("rest", port, body, _infer_path(workload), headers)
    return Way("REST binary", target, _read_binary)


def _described(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "datatype": OIP_TYPES[str(value.dtype)], "shape": list(value.shape)}


def _infer_path(workload: Workload) -> str:
    return f"/v2/models/{workload.name}/infer"


_NUMPY: Final = {oip_name: np.dtype(name) for name, oip_name in OIP_TYPES.items()}
_TYPED: Final = {"FP32": "fp32_contents", "INT64": "int64_contents", "INT32": "int_contents"}


def _read_grpc(body: bytes) -> Mapping[str, Any]:
    answer = oip.ModelInferResponse.FromString(body)
    read = {}
    for number, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            raw = answer.raw_output_contents[number]
            read[output.name] = np.frombuffer(raw, _NUMPY[output.datatype])
        else:
            read[output.name] = np.array(getattr(output.contents, _TYPED[output.datatype]))
    return read


def _read_oip_json(body: bytes) -> Mapping[str, Any]:
    return {output["name"]: np.array(output["data"]) for output in json.loads(body)["outputs"]}


def _read_binary(body: bytes) -> Mapping[str, Any]:
    """The JSON head ends where the tensors begin: their sizes are in it."""
    head, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    read = {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        read[output["name"]] = np.frombuffer(body[end : end + size], _NUMPY[output["datatype"]])
        end += size
    return read


def _read_mlflow(body: bytes) -> Mapping[str, Any]:
    predictions = json.loads(body)["predictions"]
    return {name: np.array(value) for name, value in predictions.items()}
