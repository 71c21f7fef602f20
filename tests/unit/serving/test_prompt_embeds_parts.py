"""Rows in place of text: what they mean to every family, and files that are none."""

import base64
import io
import os
import pickle
import zipfile

import pytest
import torch

from cacovid.errors import BadItem
from serving.engine.tensor_file import read_rows
from tests.support.serving_engine import clip_of, tiny_llm
from tests.support.serving_server import BASE, POLICY, embedded_llm
from tests.support.tiny_models import BUILDERS
from tests.unit.serving.test_api import messages, post

WORDS = "what is the colour of the circle"


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def embedded(llm, text: str) -> torch.Tensor:
    ids = llm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return llm.model.get_input_embeddings()(torch.tensor(ids))


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("kind", sorted(set(BUILDERS) - {"qwen3_vl"}))
def test_embedded_text_is_read_as_the_text_itself(kind, positions):
    llm = tiny_llm(kind)
    mark, clip = llm.processor.video_token, llm.watch(clip_of(0).frames)

    def logits(text: str, *clips) -> torch.Tensor:
        parts = [{"type": "video"}, {"type": "text", "text": text}, {"type": "text", "text": " red"}]
        encoded = llm.encode_chat([{"role": "user", "content": parts}], [clip, *clips])
        kept = torch.arange(0, encoded.grid.tokens, 3)[None]
        with torch.inference_mode():
            return llm.model(**llm.pack(encoded, kept, positions), use_cache=False).logits[0, -1]

    told = logits(WORDS)
    assert torch.allclose(logits(mark, llm.rows_as_clip(embedded(llm, WORDS))), told, atol=1e-4)
    assert not torch.allclose(logits(mark, llm.rows_as_clip(embedded(llm, WORDS.replace("circle", "square")))), told)


def test_a_family_with_tower_levels_takes_none():
    llm = tiny_llm("qwen3_vl")
    with pytest.raises(BadItem, match="tower levels"):
        llm.rows_as_clip(embedded(llm, WORDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_torch_saves_is_read(dtype):
    rows = torch.randn(5, 7).to(dtype)
    for each in (rows, rows[None], torch.nn.Parameter(rows).detach()):
        assert torch.equal(read_rows(saved(each)), rows)


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/harm-was-done",)


def packed() -> bytes:
    """A bomb: the same file with its numbers compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(64, 128)))) as whole, zipfile.ZipFile(buffer, "w") as small:
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


HOSTILE = {
    "nothing": b"",
    "text": b"red",
    "program in a pickle": pickle.dumps(Harm()),
    "program in a file of torch's": saved({"a": torch.zeros(2), "b": Harm()}),
    "bomb": packed(),
    "half a file": saved(torch.zeros(64, 128))[:5000],
    "old format": saved(torch.zeros(4, 128), _use_new_zipfile_serialization=False),
    "whole numbers": saved(torch.zeros(4, 128, dtype=torch.int64)),
    "sparse": saved(torch.zeros(4, 128).to_sparse()),
    "dictionary": saved({"rows": torch.zeros(4, 128)}),
    "no number": saved(torch.full((4, 128), float("nan"))),
    "infinite": saved(torch.full((4, 128), float("inf"))),
    "another width": saved(torch.zeros(4, 127)),
    "one row": saved(torch.zeros(128)),
    "no row": saved(torch.zeros(0, 128)),
    "four dimensions": saved(torch.zeros(1, 1, 4, 128)),
    "across": saved(torch.zeros(128, 4).T),
    "part of another": saved(torch.zeros(400, 128)[4:8]),
    "expanded": saved(torch.zeros(1, 128).expand(4, 128)),
    "endless": saved(torch.zeros(70_000, 128, dtype=torch.float16)),
}


def part(content: bytes | str) -> dict:
    data = content if isinstance(content, str) else base64.b64encode(content).decode()
    return {"type": "prompt_embeds", "data": data}


def test_a_chat_with_rows_is_answered_as_the_text(service):
    text = "what color is the ring object?\nA. red\nB. blue\nC. green\nD. pink"
    told = service.client().chat.completions.create(model=POLICY, messages=messages(text), logprobs=True)
    (video, _), rows = messages(text)[0]["content"], saved(embedded(embedded_llm(), text))
    turns = [{"role": "user", "content": [video, part(rows)]}]
    given = service.client().chat.completions.create(model=POLICY, messages=turns, logprobs=True)
    assert given.choices[0].message == told.choices[0].message
    assert given.usage.prompt_tokens == told.usage.prompt_tokens
    assert given.choices[0].logprobs.content[0].logprob == pytest.approx(
        told.choices[0].logprobs.content[0].logprob, abs=1e-4
    )


@pytest.mark.parametrize("name", [*HOSTILE, "no base64"])
def test_hostile_rows_are_refused(service, name):
    data = "%%%" if name == "no base64" else HOSTILE[name]
    refused = post(
        service, "/v1/chat/completions", {"model": BASE, "messages": [{"role": "user", "content": [part(data)]}]}
    )
    assert 400 <= refused.status_code < 500, refused.text
    assert len(refused.text) < 1000
    assert not os.path.exists("/tmp/harm-was-done")
