"""Bundles on the fleet's side: building them from a project, storing their pieces, publishing them.

This face imports nothing: ``build`` needs onnx and the device's runtime, ``folder`` neither.
"""

__all__: list[str] = []
