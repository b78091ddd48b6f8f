"""The model server: one child process that serves every active model of the device (Open Inference
Protocol).

Rules kept here:

- The supervisor talks to it over a socket pair (``agent.serving.control``), never by importing it:
  this face and ``control``/``control_client`` import neither numpy, onnxruntime, grpc nor the
  protocol's messages.
- Requests never wait for a load, a swap or a drain.
- The process ends when its supervisor does.
"""

from agent.serving.control import MAX_LINE_BYTES, Op

__all__ = ["MAX_LINE_BYTES", "Op"]
