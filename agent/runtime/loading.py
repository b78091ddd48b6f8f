"""From a bundle's folder to a pipeline that has run: what the registry does before it shows a version.

Rules kept here:

- The manifest must be the one asked for: its digest is compared, not its name.
- The saved form is loaded only when everything about it fits, and the bundle's own files when it does
  not or does not run.
- A version is warm before anybody may ask it.
"""

import functools
import logging
from pathlib import Path

from agent.bundle import Manifest, manifest_sha256
from agent.bundle.folder import read_bundle
from agent.errors import BundleError
from agent.runtime.engine import ort
from agent.runtime.errors import ModelLoadError
from agent.runtime.golden import load_inputs
from agent.runtime.pipeline import Pipeline, example_inputs
from agent.runtime.saved_form import Maker, processor, verified_form
from agent.runtime.session import EngineOptions

__all__ = ["load_warm", "read_manifest"]

_log = logging.getLogger(__name__)
_processor = functools.cache(processor)


def read_manifest(folder: Path, sha256: str) -> Manifest:
    """The manifest in ``folder``.

    Raises:
        BundleError: it cannot be read, or it is another one.
    """
    manifest, raw = read_bundle(folder)
    found = manifest_sha256(raw)
    if found != sha256:
        raise ModelLoadError(
            f"the bundle in {folder} is {found[:12]}, but {sha256[:12]} was asked for"
        )
    return manifest


def load_warm(
    folder: Path, manifest: Manifest, sha256: str, engine: EngineOptions, runs: int, form: Path | None
) -> tuple[Pipeline, bool]:  # fmt: skip
    """The bundle, loaded and run ``runs`` times, and whether its saved form in ``form`` was used.

    Raises:
        BundleError: the model cannot be loaded or run.
    """
    if form is not None:
        maker = Maker(sha256, ort.__version__, _processor(), engine.providers)
        if verified_form(form, maker) is not None:
            try:
                pipeline = Pipeline.load(folder, manifest, engine, form=form)
                _warm_up(pipeline, folder, runs)
            except BundleError as error:
                # The bundle's own files have passed the trial; the saved form was only faster.
                _log.warning("%s: the saved form is not used: %s", manifest.path, error)
            else:
                return pipeline, True
    pipeline = Pipeline.load(folder, manifest, engine)
    _warm_up(pipeline, folder, runs)
    return pipeline, False


def _warm_up(pipeline: Pipeline, folder: Path, runs: int) -> None:
    manifest = pipeline.manifest
    golden = manifest.golden
    inputs = load_inputs(folder, manifest, golden[0]) if golden else example_inputs(manifest)
    for _ in range(runs):
        pipeline.run(inputs)
