"""What vLLM's ``/v1/completions`` is asked, and what its streamed answers and refusals mean.

Tokens come by their ids (``return_token_ids``, ``return_tokens_as_token_ids``), so that text, stop strings and ends
of answers are this service's own, as with its other engines.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cacovid.models.adapter import VideoLLM
from serving.engine.decoding import Answering
from serving.engine.embeddings import prompt_embeds
from serving.engine.records import Decoding, Token
from serving.errors import ApiError, overloaded

_TOKEN = "token_id:"


def prompt_of(video_llm: VideoLLM, answering: Answering) -> dict[str, Any]:
    """The field that holds the compressed prompt.

    Raises:
        ApiError: positions that this route cannot carry.
    """
    prompt = answering.prompt
    if len(prompt.kept) == 0 and prompt.encoded.pinned.shape[0] == 0:
        return {"prompt": prompt.encoded.input_ids.tolist()}
    rows = prompt_embeds(video_llm, prompt.encoded, prompt.kept.to(video_llm.device), prompt.positions)
    return {"prompt_embeds": base64.b64encode(rows).decode()}


def wish_of(decoding: Decoding, ends: Sequence[int]) -> dict[str, Any]:
    """The fields that say how the answer is drawn, by vLLM's own sampler."""
    wish: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "presence_penalty": decoding.presence_penalty,
        "frequency_penalty": decoding.frequency_penalty,
        "stop_token_ids": list(ends),
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if decoding.temperature > 0:
        wish["seed"] = decoding.seed
    if decoding.logprobs is not None:
        wish["logprobs"] = decoding.logprobs
    if decoding.structure is not None:
        kind, value = decoding.structure.kind, decoding.structure.value
        wish["structured_outputs"] = {"json" if kind == "json_schema" else kind: True if value is None else value}
    return wish


def choice_of(line: bytes) -> dict[str, Any] | None:
    """The choice that a line of server-sent events holds; None for lines without one.

    Raises:
        ApiError: 502 for an error in the stream, or an answer of another form.
    """
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return None
    try:
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise failed(str(event["error"].get("message")))
        choices = event["choices"]
        return choices[0] if choices else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise failed("its answer has another form than vLLM's") from error


def tokens_of(choice: Mapping[str, Any], most: int) -> list[Token]:
    """The tokens of a choice with at most ``most`` of the likeliest beside each.

    Raises:
        ApiError: 502 where they have no ids.
    """
    ids = choice.get("token_ids")
    if ids is None:
        if choice.get("text"):
            raise failed("its answers hold no token ids: use a vLLM that knows return_token_ids")
        return []
    told = choice.get("logprobs")
    if not told:
        return [Token(token) for token in ids]
    try:
        rows = zip(ids, told["token_logprobs"], told["top_logprobs"], strict=True)
        return [Token(token, logprob, _likeliest(top or {}, most)) for token, logprob, top in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise failed("its log-probabilities have another form than vLLM's") from error


def _likeliest(top: Mapping[str, float], most: int) -> tuple[tuple[int, float], ...]:
    """vLLM tells the drawn token among them, also where it is not of the likeliest."""
    ranked = sorted(
        ((int(name.removeprefix(_TOKEN)), logprob) for name, logprob in top.items()), key=lambda each: -each[1]
    )
    return tuple(ranked[:most])


def refusal_of(status: int, body: bytes) -> ApiError:
    """What a client is told where vLLM answered with ``status``."""
    if status in (400, 413, 422):
        return ApiError(400, "upstream_refused", f"the vLLM server refused the request: {_message(body)}")
    if status in (429, 503):
        return overloaded("the vLLM server is busy", 2)
    if status in (401, 403, 404):
        return ApiError(
            502,
            "upstream_misconfigured",
            f"the vLLM server does not know this service's key or model (status {status}): mend engine.upstream",
        )
    return failed(f"status {status}")


def failed(why: str) -> ApiError:
    """502 for what is wrong behind this service."""
    return ApiError(502, "upstream_failed", f"the vLLM server failed: {_short(why)}")


def _message(body: bytes) -> str:
    try:
        return _short(str(json.loads(body)["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return "without a reason that can be read"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
