"""onnxruntime, imported in one place and kept from talking to anybody.

From 1.29 on, onnxruntime's Linux packages report usage to their maker and keep a device id in the home folder unless
the environment says no before the library is loaded. A device's models are its owner's business: it always says no.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must come first: the library reads it while it loads

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

__all__ = ["ort", "ort_errors"]
