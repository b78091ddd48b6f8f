"""A real Mosquitto for tests: on a port of its own, stopped and started again at will."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.support.daemon import free_port

PROGRAM = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def require_mosquitto() -> None:
    """Skip the test where there is none, and say so; in CI that is a failure, so that nothing is skipped silently."""
    if PROGRAM is None:
        reason = "mosquitto is missing: packaging/debian-deps.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Mosquitto:
    """MQTT 5 on loopback, anonymous, nothing persistent: after a restart it knows nothing."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            f"max_packet_size 131072\nlog_type error\n",
            encoding="utf-8",
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    async def start(self) -> None:
        assert PROGRAM is not None
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM, "-c", str(self._config), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(90):
            while not await self._accepts():
                assert self._process.returncode is None, "mosquitto ended at once"
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """As in a crash: every connection is cut and everything is forgotten."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(*self.address)
        except OSError:
            return False
        writer.close()
        return True
