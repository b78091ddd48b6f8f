"""What can go wrong on the way of the bytes, by whose fault it is."""

from agent.errors import DeviceError, LinkError

__all__ = [
    "DiskFullError",
    "FetchStalledError",
    "PieceDamagedError",
    "PieceDigestError",
    "PieceStreamError",
]


class PieceDigestError(LinkError):
    """The bytes that arrived, or that were kept, are not the piece. They have been thrown away."""

    def __init__(self, sha256: str, what: str) -> None:
        super().__init__(
            f"piece {sha256[:12]}…: {what}; its bytes were thrown away, fetch it again"
        )


class PieceStreamError(LinkError):
    """The source broke a rule of the stream: a piece nobody asked for, a gap, too many bytes."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the piece source broke the stream's rules: {what}; check the fleet manager"
        )


class FetchStalledError(LinkError):
    """Attempts in a row brought nothing. What arrived before is kept; try again later."""

    def __init__(self, attempts: int, missing: int, last: Exception | None) -> None:
        why = f"; the last error was: {last}" if last is not None else ""
        super().__init__(
            f"{attempts} attempts in a row brought no byte, {missing} pieces are missing{why}"
        )


class PieceDamagedError(LinkError):
    """One piece arrived damaged too often: the source's copy is wrong."""

    def __init__(self, sha256: str, times: int) -> None:
        super().__init__(
            f"piece {sha256[:12]}… arrived with other bytes than its digest {times} times; "
            f"check the artifact store of the fleet manager"
        )


class DiskFullError(DeviceError):
    """There is no room for what is to be written."""

    def __init__(self, where: str, needed_bytes: int | None, free_bytes: int | None) -> None:
        need = "" if needed_bytes is None else f": {needed_bytes} bytes are needed"
        free = "" if free_bytes is None else f", {free_bytes} are free"
        super().__init__(
            f"no room on the disk of {where}{need}{free}; free some space on the device"
        )
