"""The Open Inference Protocol over HTTP, on the loopback and on a unix socket.

Rules kept here:

- One event loop on its own thread; what is slow runs in a small pool, chosen by measurement.
- No framework: a bare ASGI application on uvicorn (uvloop, httptools).
"""

__all__: list[str] = []
