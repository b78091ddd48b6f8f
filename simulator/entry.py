"""The console script ``fleet-sim``. It imports nothing that a bare install lacks before it can say what is missing."""

import sys

__all__ = ["main"]

OUR_PACKAGES = frozenset({"agent", "fleet", "protos", "simulator"})


def main() -> None:
    """Run the command line; a library that an extra brings and that is missing is named, not shown as a traceback."""
    try:
        from simulator.cli import app

        app()
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in OUR_PACKAGES:
            raise  # a part of Muster itself is missing: that is a broken install, and the traceback says where
        sys.stderr.write(
            f"error: fleet-sim needs the simulator extra ({library} is not installed): "
            "pip install 'muster-edge[simulator]'\n"
        )
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
