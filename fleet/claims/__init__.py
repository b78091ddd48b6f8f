"""Claims about a bundle that others can check with public tools: ``model.sig``, the ML-BOM, the attestation of checks.

Nothing here is what a device trusts: that is the signed metadata. Formats only: no fleet folder, no network. This face
imports nothing.
"""

__all__: list[str] = []
