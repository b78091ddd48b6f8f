"""gRPC on our own HTTP/2 (RFC 9113): what a device's applications need of it, on one event loop.

Rules kept here:

- No I/O below ``protocol``: frames, header blocks, windows, streams and messages are values in and values out.
- Everything that a peer can make grow has a bound in ``limits``; whoever goes beyond it loses its stream or its
  connection, with the code that RFC 9113 has for that, and nobody else notices.
- A usual call costs one read and one write; what is unusual may cost more.
"""

__all__: list[str] = []
