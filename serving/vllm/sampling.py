"""What a request wants of its answer in vLLM's words, and vLLM's tokens in ours."""

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from serving.engine.drawing import Draws
from serving.engine.records import Decoding, Structure, Token
from serving.vllm.names import DRAWS


def sampling(decoding: Decoding, ends: Sequence[int]) -> SamplingParams:
    """Greedy towards vLLM: draws and penalties are made by :mod:`serving.vllm.draws`; stop strings by the service."""
    own = ("max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
    return SamplingParams(
        temperature=0.0,
        max_tokens=decoding.max_tokens,
        stop_token_ids=list(ends),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        logprobs=decoding.logprobs,
        structured_outputs=None if decoding.structure is None else _structured(decoding.structure),
        extra_args=None if Draws(decoding).greedy else {DRAWS: {name: getattr(decoding, name) for name in own}},
    )


def tokens(output: Any, most: int) -> list[Token]:  # noqa: ANN401  a CompletionOutput
    """The tokens of an output with at most ``most`` of the likeliest beside each."""
    found = output.logprobs or [{}] * len(output.token_ids)
    return [_token(token, likely, most) for token, likely in zip(output.token_ids, found, strict=True)]


def _token(token: int, likely: dict[int, Any], most: int) -> Token:
    if token not in likely:
        return Token(token)
    ranked = sorted(((each.rank, other, each.logprob) for other, each in likely.items() if each.rank <= most))
    return Token(token, likely[token].logprob, tuple((other, logprob) for _, other, logprob in ranked))


def _structured(structure: Structure) -> StructuredOutputsParams:
    match structure.kind:
        case "json_schema":
            return StructuredOutputsParams(json=structure.value)
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "choice":
            return StructuredOutputsParams(choice=list(structure.value))
        case "regex":
            return StructuredOutputsParams(regex=structure.value)
        case "grammar":
            return StructuredOutputsParams(grammar=structure.value)
