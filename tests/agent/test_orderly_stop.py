"""A stop in order is no crash: a bundle on probation goes on at the next start, uncounted."""

import asyncio
import shutil
import time

from agent.adapters.journal import SqliteJournal
from agent.bundle import Objectives
from agent.config import load_config
from agent.daemon import run_agent
from agent.state_dir import StatePaths
from agent.update import Deployment, ModelRecord, Phase
from tests.support.daemon import free_port
from tests.support.onnx_models import scale_bundle
from tests.support.signed_fleet import SignedFleet


def stored(config):
    journal = SqliteJournal(StatePaths(config.device.state_dir).journal)
    try:
        return journal.load().models["scale"].deployment
    finally:
        journal.close()


def configured(folder):
    fleet = SignedFleet(folder / "fleet", now_s=time.time())
    (folder / "root.json").write_bytes(fleet.root)
    path = folder / "agent.toml"
    path.write_text(
        f'[device]\nid = "cam-1"\nclass = "cam"\nstate_dir = "state"\n[fleet]\nname = "lab"\n'
        f'root = "root.json"\ngrpc = "127.0.0.1:{free_port()}"\nmqtt = ""\n'
        f'[serving]\nlisten = "127.0.0.1:0"\nhttp = ""\n',
        encoding="utf-8",
    )
    return load_config(path)


async def test_it_is_marked_in_the_journal_and_not_counted(tmp_path):
    config = configured(tmp_path)
    paths = StatePaths(config.device.state_dir)
    made = scale_bundle(tmp_path / "made", objectives=Objectives(probation_s=3600))
    paths.slots.mkdir(parents=True)
    shutil.copytree(made.path, paths.slots / made.sha256)
    # One restart after a crash has been forgiven already: one more would revert it.
    found = Deployment(
        id="d", rollout_id="r2", model="scale", bundle=made.manifest.path, manifest_sha256=made.sha256,
        length=9, started_s=1.5, phase=Phase.PROBATION, boots=1, version="1.0.0", served=True, stopped=True,
    )  # fmt: skip
    journal = SqliteJournal(paths.journal)
    journal.save(ModelRecord("scale", deployment=found))
    journal.close()
    stop = asyncio.Event()
    running = asyncio.create_task(run_agent(config, stop))
    async with asyncio.timeout(60):
        # The start takes the mark away, serves the bundle and puts it on probation anew.
        while (now := stored(config)).stopped or now.phase is not Phase.PROBATION:
            assert not running.done(), running.result()
            await asyncio.sleep(0.02)
    stop.set()
    async with asyncio.timeout(60):
        await running
    after = stored(config)
    assert (after.phase, after.boots, after.stopped) == (Phase.PROBATION, 1, True)
