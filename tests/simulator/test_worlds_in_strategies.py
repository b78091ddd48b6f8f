"""Strategies against a real ``fleet serve``, on devices that run the agent's own code."""

import asyncio
from typing import Any

from tests.simulator.synthetic import publish_random
from tests.simulator.test_worlds_in_rollouts import first_bundle, world
from tests.support.fleet import FleetHost

QUIET = {
    "max_error_rate": None, "max_over_latency_rate": None, "max_output_violation_rate": None,
    "silence_s": 60.0, "min_installs": 1,
}  # fmt: skip
BESIDE = {"percent_bp": 10_000, "bake_s": 0.2}
HALF, ALL = {"percent_bp": 5000, "bake_s": 0.2}, {"percent_bp": 10_000, "bake_s": 0.2}
STRATEGIES: dict[str, list[dict[str, Any]]] = {
    "shadow-then-canary": [{**BESIDE, "kind": "shadow", "traffic_bp": 5000}, ALL],
    "ab": [{**BESIDE, "kind": "ab", "traffic_bp": 5000}, ALL],
    "blue-green": [{**BESIDE, "kind": "standby"}, HALF, ALL],
}


async def test_one_strategy_after_another(host: FleetHost) -> None:
    async with world(host, "modes", count=4) as running:
        await first_bundle(host, running, "modes")
        for major, (strategy, stages) in enumerate(STRATEGIES.items(), 2):
            version = f"{major}.0.0"
            published = await asyncio.to_thread(publish_random, host, version, device_class="modes")
            spec = {
                "bundle": published.path, "strategy": strategy, "stages": stages, "guards": QUIET,
            }  # fmt: skip
            started = await asyncio.to_thread(host.post, "/v1/rollouts", spec)
            ended = await asyncio.to_thread(host.wait_rollout, started["id"], "promoted", 90.0)
            assert ended["stage"] == len(stages) - 1
            expected = {f"vad {version}": 4}
            await running.until(lambda: running.serving() == expected)  # noqa: B023 -- awaited here
            audit = await asyncio.to_thread(host.get, f"/v1/rollouts/{started['id']}/audit")
            assert audit["equal"], audit
