"""A real fleet manager and real agents for system tests, started as a user starts them, on ports of their own.

``FleetHost`` is a fleet folder and the ``fleet serve`` in it; ``Device`` is a state folder and the ``fleet-agent run``
in it. Both can be killed and started again over the same folder. A process that died where it should live fails the
wait at once, with the end of its log.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli.app import app
from fleet.cli.client import FleetClient
from fleet.cli.output import console
from fleet.errors import FleetError, NotFoundError
from tests.support.daemon import WAIT_S, Daemon, GaveUpError, free_port, run, wait_until

FLEET = (sys.executable, "-m", "fleet.cli.entry")
RATE_GUARDS = ("max_error_rate", "max_over_latency_rate", "max_output_violation_rate")
AGENT = (sys.executable, "-m", "agent.cli")


@dataclass(slots=True)
class FleetHost:
    """A fleet folder; ``broker`` is "embedded", "none" or "mqtt://host:port"."""

    home: Path
    broker: str = "embedded"
    name: str = "lab"
    tick_s: float = 0.2
    daemon: Daemon = field(init=False)
    mqtt_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.daemon = Daemon(self.home.parent / f"{self.home.name}.log")

    def init(self) -> None:
        run([*FLEET, "init", str(self.home), "--name", self.name])
        (self.home / "fleet.toml").write_text(
            f'[fleet]\nname = "{self.name}"\n\n[http]\nlisten = "127.0.0.1:{self.http_port}"\n\n'
            f'[grpc]\nlisten = "127.0.0.1:{self.grpc_port}"\n\n'
            f'[broker]\nmode = "{self.broker}"\nlisten = "127.0.0.1:{self.mqtt_port}"\n\n'
            f"[controller]\ntick_s = {self.tick_s}\n",
            encoding="utf-8",
        )

    def start(self, launcher: Sequence[str] = FLEET, env: Mapping[str, str] | None = None) -> None:
        self.launch(launcher, env)
        self.wait_ready()

    def launch(self, launcher: Sequence[str] = FLEET, env: Mapping[str, str] | None = None) -> None:
        self.daemon.start([*launcher, "serve", "--home", str(self.home)], env)

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.daemon.require_alive()
            try:
                self.get("/v1/status")
            except FleetError:
                return False
            return True

        wait_until(ready, "fleet serve answers")

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def mqtt_address(self) -> str:
        """What agents are told: "" without a broker."""
        if self.broker == "none":
            return ""
        if self.broker == "embedded":
            return f"127.0.0.1:{self.mqtt_port}"
        return self.broker.removeprefix("mqtt://")

    @property
    def token(self) -> str:
        """What ``fleet serve`` lets who may read its folder in by; "" before it has ever run."""
        kept = self.home / "local-token"
        return kept.read_text(encoding="ascii").strip() if kept.exists() else ""

    def get(self, path: str) -> Any:
        with FleetClient(self.server, self.token) as client:
            return client.get_json(path)

    def post(self, path: str, body: object = None) -> Any:
        with FleetClient(self.server, self.token) as client:
            return client.post_json(path, body)

    def command(self, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """A ``fleet`` command against this host, in this process: to start Python for each costs more than the rest."""
        env = {"MUSTER_HOME": str(self.home), "MUSTER_SERVER": self.server}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(console, "width", 250)  # whoever runs the tests in whatever terminal
            result = CliRunner().invoke(app, arguments, env=env)
        said = f"fleet {arguments} -> {result.exit_code}\n{result.output}\n{result.exception!r}"
        assert not check or result.exit_code == 0, said
        return CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    def publish(self, project: Path) -> str:
        """Build and publish a bundle project; returns the bundle's path in the repository."""
        out = project.parent / f"{project.name}-bundle"
        self.command("bundle", "build", str(project), "--out", str(out))
        answer = self.command("bundle", "publish", str(out), "--json")
        return str(json.loads(answer.stdout)["path"])

    def start_rollout(
        self,
        bundle: str,
        stages: Sequence[tuple[float, float]],
        *,
        device: str = "",
        **guards: Any,
    ) -> str:
        """Start a rollout; ``stages`` are (percent, bake seconds), ``device`` names its only one.

        Without traffic the guards on rates would hold for ever, so they are off unless given. A named device is waited
        for: the plan refuses one that it has not heard of.
        """
        if device:
            self.wait_known(device)
        quiet = dict.fromkeys(RATE_GUARDS)
        spec = {
            "bundle": bundle,
            "stages": [{"percent_bp": round(p * 100), "bake_s": bake_s} for p, bake_s in stages],
            "guards": {"silence_s": 60.0, "min_installs": 1, "min_requests": 10, **quiet, **guards},
            "selector": {"id": device} if device else {},
        }
        return str(self.post("/v1/rollouts", spec)["id"])

    def rollout(self, rollout_id: str) -> Any:
        return self.get(f"/v1/rollouts/{rollout_id}")

    def wait_rollout(self, rollout_id: str, state: str, timeout_s: float = WAIT_S) -> Any:
        def there() -> Any:
            self.daemon.require_alive()
            got = self.rollout(rollout_id)
            return got if got["state"] == state else None

        try:
            return wait_until(there, state, timeout_s)
        except GaveUpError:
            raise GaveUpError(
                f"{rollout_id} is not {state} after {timeout_s:.0f} s but: "
                f"{self.rollout(rollout_id)['state']}: {self.rollout(rollout_id)['reason']}\n"
                f"{self.daemon.tail()}"
            ) from None

    def wait_known(self, device_id: str, timeout_s: float = WAIT_S) -> None:
        """Until it has the inventory of this device."""

        def known() -> bool:
            self.daemon.require_alive()
            devices = self.get("/v1/devices")["devices"]
            return any(row["id"] == device_id and row["device_class"] for row in devices)

        wait_until(known, f"the fleet knows {device_id}", timeout_s)

    def device(self, device_id: str) -> Any:
        return self.get(f"/v1/devices/{device_id}")

    def wait_outcome(
        self, device_id: str, outcome: str, rollout_id: str = "", timeout_s: float = WAIT_S
    ) -> Any:
        """Until the device's newest step (in one rollout) has this outcome; returns the step."""
        seen: list[Any] = []

        def there() -> Any:
            self.daemon.require_alive()
            try:
                rows = self.device(device_id)["deployments"]  # newest first
            except NotFoundError:  # it has not been heard of yet
                return None
            seen[:] = [row for row in rows if rollout_id in ("", row["rollout_id"])][:1]
            return seen[0] if seen and seen[0]["outcome"] == outcome else None

        try:
            return wait_until(there, outcome, timeout_s)
        except GaveUpError:
            raise GaveUpError(
                f"{device_id} is not {outcome} after {timeout_s:.0f} s but {seen}"
            ) from None

    def stop(self) -> None:
        if self.daemon.alive:
            self.daemon.terminate()


@dataclass(slots=True)
class Device:
    """One agent; ``state_dir`` may be a folder of the test's own, ``extra`` is more TOML."""

    host: FleetHost
    folder: Path
    id: str
    state_dir: Path = field(default=Path())
    oip_port: int = field(default_factory=free_port)
    extra: str = ""
    window_s: float = 1.0
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state_dir == Path():
            self.state_dir = self.folder / "state"
        self.daemon = Daemon(self.folder / "agent.log")

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def address(self) -> str:
        """Where its model server answers."""
        return f"127.0.0.1:{self.oip_port}"

    def write_config(self) -> None:
        self.config.write_text(
            f'[device]\nid = "{self.id}"\nclass = "edge"\nstate_dir = "{self.state_dir}"\n\n'
            f'[fleet]\nname = "{self.host.name}"\nroot = "{self.host.home / "root.json"}"\n'
            f'grpc = "127.0.0.1:{self.host.grpc_port}"\nmqtt = "{self.host.mqtt_address}"\n'
            f"fallback_after_s = 1.0\n\n"
            f'[serving]\nlisten = "{self.address}"\nhttp = ""\n\n'
            f"[telemetry]\nwindow_s = {self.window_s}\ncohort_window_s = {self.window_s}\n\n{self.extra}",
            encoding="utf-8",
        )

    def start(self, launcher: Sequence[str] = AGENT, env: Mapping[str, str] | None = None) -> None:
        self.write_config()
        self.daemon.start([*launcher, "run", "--config", str(self.config)], env)

    def wait_known(self, timeout_s: float = WAIT_S) -> None:
        """Until the fleet manager has this device's inventory."""
        self.host.wait_known(self.id, timeout_s)

    def status(self) -> Any:
        done = run([*AGENT, "status", "--config", str(self.config), "--json"], check=False)
        return json.loads(done.stdout)

    def served_version(self, model: str) -> str:
        """The version that answers now; "" when none does."""
        import tritonclient.grpc as triton

        client = triton.InferenceServerClient(self.address)
        try:
            return str(client.get_model_metadata(model, client_timeout=60).versions[0])
        except (triton.InferenceServerException, IndexError):
            return ""
        finally:
            client.close()

    def wait_serving(self, model: str, version: str, timeout_s: float = WAIT_S) -> None:
        def serving() -> bool:
            self.daemon.require_alive()
            return self.served_version(model) == version

        try:
            wait_until(serving, version, timeout_s)
        except GaveUpError:
            raise GaveUpError(
                f"{self.id} serves {self.served_version(model)!r}, not {version!r}, after "
                f"{timeout_s:.0f} s:\n{self.daemon.tail()}"
            ) from None

    def children(self) -> list[int]:
        """Process ids of the agent's children."""
        import psutil

        return [child.pid for child in psutil.Process(self.daemon.pid).children(recursive=True)]

    def stop(self) -> None:
        if self.daemon.alive:
            self.daemon.terminate()
