"""The console script ``fleet``. It imports nothing that a bare install lacks before it can say what is missing."""

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; a library that an extra brings and that is missing is named, not shown as a traceback."""
    # Children are started by exec, never by a bare fork, so gRPC need not prepare for one (nor log that it cannot).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from fleet.cli.app import OUR_PACKAGES, app

    try:
        app(prog_name="fleet")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in OUR_PACKAGES:
            raise  # a part of Muster itself is missing: that is a broken install, and the traceback says where
        sys.stderr.write(
            f"error: this command needs the fleet extra ({library} is not installed): "
            "pip install 'muster-edge[fleet]'\n"
        )
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
