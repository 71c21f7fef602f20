"""lmms-eval's model class: ``--model cacovid --model_args policy=runs/demo,retention=0.1``.

Source: the chat interface of lmms-eval 0.7.3 (``lmms_eval.api.model.lmms`` with ``is_simple = False``).
"""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from cacovid.errors import UserError
from cacovid.harness.answerer import Answerer
from cacovid.methods.selection import selection_rule

MAX_NEW_TOKENS = 1024  # lmms-eval's own default
GREEDY = {"do_sample": (False, None), "num_beams": (1, None), "n": (1, None), "temperature": (0, None)}


class Cacovid(lmms):  # type: ignore[misc]
    """Answers one request after the other, greedily. Arguments as :class:`cacovid.harness.answerer.Answerer`."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        policy: str | None = None,
        method: str | None = None,
        retention: float = 0.1,
        num_frames: int | None = None,
        rule: str | None = None,
        seed: int = 0,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size or 1) != "1":
            raise UserError(f"batch_size is {batch_size}: questions are answered one after the other, leave it at 1")
        selection = None if rule is None else selection_rule(rule)
        self._answerer = Answerer(
            pretrained,
            policy,
            method=method,
            retention=retention,
            num_frames=num_frames,
            selection=selection,
            device=device,
            seed=seed,
        )

    @property
    def device(self) -> Any:  # noqa: ANN401 - torch's
        """Where several processes exchange how far they are."""
        return self._answerer.video_llm.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers, in the requests' order."""
        return [self._generate(request) for request in tqdm(requests, desc="cacovid", disable=self.rank != 0)]

    def _generate(self, request: Instance) -> GenerationResult:
        _, doc_to_messages, options, doc_id, task, split = request.args
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).model_dump()["messages"]
        for name, allowed in GREEDY.items():
            if options.get(name) not in allowed:
                raise UserError(f"task {task} asks for {name}={options[name]}: answers are greedy, choose another task")
        answer = self._answerer.answer(chat, f"{task}-{doc_id}", options.get("max_new_tokens") or MAX_NEW_TOKENS)
        counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
        return GenerationResult(_until(answer.text, options.get("until") or ()), counts)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """lmms-eval asks chat models for texts alone."""
        raise NotImplementedError("chat models generate: choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Tasks of several rounds."""
        raise NotImplementedError("one round a question: choose a task whose output_type is generate_until")


def _until(text: str, stops: str | Sequence[str]) -> str:
    """``text`` up to the first of ``stops``."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text
