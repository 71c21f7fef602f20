"""What ends an answer, and that nothing but the prompt decides it: settings that published models ship."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from tests.support.reference_model import PROMPT, Subject, random_keep, tiny_subject, turn

NEW = 8


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def changed(subject: Subject, folder: Path, name: str, **entries: object) -> VideoLLM:
    """The same model with other ``entries`` in the JSON file ``name``; None removes one."""
    shutil.copytree(subject.folder, folder, dirs_exist_ok=True)
    settings = json.loads((folder / name).read_text()) | entries
    (folder / name).write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return load_video_llm(ModelConfig(path=str(folder), device="cpu"))


def tokens(llm: VideoLLM, encoded: Encoded) -> list[list[int]]:
    answers = llm.answer(encoded, random_keep(encoded.grid.tokens, 0.2, group=3), NEW)
    return [list(answer) for answer in answers.tokens]


def test_sampling_settings_of_a_repository_change_no_answer(subject: Subject, tmp_path: Path) -> None:
    shipped = {"do_sample": True, "temperature": 9.0, "top_k": 50, "repetition_penalty": 3.0}  # as Qwen's, but wilder
    llm = changed(subject, tmp_path, "generation_config.json", **shipped)
    assert tokens(llm, subject.encoded) == tokens(subject.llm, subject.encoded)


def test_every_end_token_ends_an_answer_and_none_is_part_of_it(subject: Subject, tmp_path: Path) -> None:
    plain = tokens(subject.llm, subject.encoded)
    some_rows = [token for row in plain for token in row if any(token not in other for other in plain)]
    end = some_rows[0]
    llm = changed(subject, tmp_path, "generation_config.json", eos_token_id=[170, end])
    assert llm.end_tokens == [170, end, subject.llm.processor.tokenizer.eos_token_id]
    keep = random_keep(subject.tokens, 0.2, group=3)
    answers = llm.answer(subject.encoded, keep, NEW)
    cut = [answer[: answer.index(end)] if end in answer else answer for answer in plain]
    assert [list(answer) for answer in answers.tokens] == cut
    assert list(answers.finished) == [end in answer for answer in plain]
    assert len({len(answer) for answer in cut}) > 1, "no row goes on beside a finished one"


def test_a_tokenizer_without_padding_pads_with_an_end_token(subject: Subject, tmp_path: Path) -> None:
    llm = changed(subject, tmp_path, "tokenizer_config.json", pad_token=None)
    assert llm.processor.tokenizer.pad_token_id is None
    assert llm.model.generation_config.pad_token_id == llm.end_tokens[0]
    assert tokens(llm, subject.encoded) == tokens(subject.llm, subject.encoded)


def test_a_model_that_names_no_end_is_refused(subject: Subject, tmp_path: Path) -> None:
    changed(subject, tmp_path, "tokenizer_config.json", eos_token=None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no end-of-text token: set eos_token_id in its generation_config\.json"):
        load_video_llm(ModelConfig(path=str(tmp_path), device="cpu"))


def test_a_template_that_writes_the_first_token_gets_no_second_one(tmp_path: Path) -> None:
    llm = tiny_subject("llava_next_video", tmp_path).llm
    first = llm.processor.tokenizer.bos_token_id
    for template in (llm.processor.chat_template, "{{ bos_token }}" + llm.processor.chat_template):
        llm.processor.chat_template = template
        ids = llm.encode_chat([turn(PROMPT, video=False)], []).input_ids
        assert int((ids == first).sum()) == 1
        assert torch.equal(ids[:1], torch.tensor([first]))
