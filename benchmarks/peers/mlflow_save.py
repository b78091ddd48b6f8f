"""``python mlflow_save.py ONNX INPUTS.json FOLDER``: an MLflow model of an ONNX file, in MLflow's own venv.

INPUTS.json has each input's name, numpy type and shape: MLflow needs a signature to read tensors out of JSON.
"""

import json
import sys
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


def main() -> None:
    """Write the model's folder."""
    path, described, folder = sys.argv[1:]
    specs = json.loads(Path(described).read_text(encoding="utf-8"))
    mlflow.onnx.save_model(
        onnx.load(path),
        folder,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(kind), tuple(shape), name) for name, kind, shape in specs])
        ),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )


if __name__ == "__main__":
    main()
