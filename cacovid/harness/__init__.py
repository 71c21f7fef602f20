"""Plug-in for lmms-eval: ``--model cacovid`` answers its tasks from compressed videos."""

from typing import Any


def manifest() -> Any:  # noqa: ANN401 - lmms_eval is there only where it calls this
    """What lmms-eval's entry-point group ``lmms_eval.models`` takes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="cacovid", chat_class_path="cacovid.harness.model.Cacovid")
