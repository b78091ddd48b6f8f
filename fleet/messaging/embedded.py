"""The embedded broker's own process: ``python -m fleet.messaging.embedded CONFIG.toml``.

Rules kept here: it ends when its parent does (the pipe on its stdin closes, and the kernel kills it
if even that is not noticed); it says nothing but what matters. Only iotcore's public interface is
used.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Serve until the parent goes away."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    # The broker wraps the handling of each packet in an "error" span: its records are not errors.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Signals for the terminal's whole group are the parent's business: it stops us when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from iotcore import IotCoreBroker

    IotCoreBroker(config_path=sys.argv[1]).run_forever()


def _end_with_parent() -> None:
    try:
        sys.stdin.buffer.read()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
