"""The embedded model whose answers have no end, so that each has as many tokens as were asked for."""

import json
import shutil
from pathlib import Path

from cacovid.config import ModelConfig
from cacovid.embedded.tokenizer import UNKNOWN, VOCABULARY
from cacovid.models.loading import load_video_llm, resolve_path

NAME = "endless"


def endless_model(folder: Path) -> str:
    """Write it to ``folder``: its end token is one that it never draws."""
    shutil.copytree(resolve_path("embedded"), folder)
    for name, field, value in (
        ("generation_config.json", "eos_token_id", VOCABULARY[UNKNOWN]),
        ("tokenizer_config.json", "eos_token", UNKNOWN),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert load_video_llm(ModelConfig(path=str(folder))).end_tokens == [VOCABULARY[UNKNOWN]]
    return str(folder)
