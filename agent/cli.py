"""Entry of ``fleet-agent``: the service without the command line's libraries, everything else with them.

Rules kept here:
- ``fleet-agent run`` stays in memory for years, so it never imports typer and what typer pulls in (about 15 MB);
  its option is read by argparse instead. ``fleet-agent run --help`` and every other command are in agent.commands.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> object:
    if name == "app":
        from agent.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command in ``sys.argv``; ends the process with its exit code."""
    # Children are started by exec, never by a bare fork, so gRPC need not prepare for one (nor log that it cannot).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and "--help" not in arguments:
        from agent.daemon import main as run

        raise SystemExit(run(arguments[1:]))
    from agent.commands import app

    app()


if __name__ == "__main__":
    main()
