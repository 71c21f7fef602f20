"""The fields that say how an answer is drawn, as OpenAI and vLLM write them, and the engine's record of them.

What an engine cannot do is refused there: these fields do not know which engine answers.
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from serving.api.body import Body, Number, Seed, Text
from serving.config import ServiceConfig
from serving.engine.records import Decoding, Structure
from serving.errors import invalid

Penalty = Annotated[Number, Field(ge=-2, le=2)]
StopText = Annotated[Text, Field(min_length=1, max_length=128)]
Alternatives = Annotated[int, Field(ge=0, le=20)]


class StreamOptions(Body):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="not used")


class NamedSchema(Body):
    """OpenAI's ``response_format.json_schema``."""

    name: Annotated[Text, Field(max_length=64)]
    description: Text | None = None
    schema_: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type 'json_schema', and to no other")
        return self


class StructuredOutputs(Body):
    """vLLM's ``structured_outputs``: one of these."""

    choice: Annotated[list[StopText], Field(min_length=1, max_length=64)] | None = None
    json_: dict[str, JsonValue] | None = Field(None, alias="json")
    regex: Annotated[Text, Field(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[Text, Field(min_length=1, max_length=8192)] | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise ValueError("give one of choice, json, regex, grammar and json_object")
        return self


class Drawing(Body):
    """What chat and text completions share."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = Field(
        None, description="without it the answer is greedy"
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers; the i-th has the seed seed + i")
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    response_format: ResponseFormat | None = Field(None, description="other than text: engine.kind 'vllm'")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's; engine.kind 'vllm'")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None  # taken only where it changes nothing
    user: Text | None = None  # never changes an answer

    @model_validator(mode="after")
    def _consistent(self) -> "Drawing":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options without stream: leave them out or stream")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("response_format and structured_outputs: give one")
        return self


def decoding_of(body: Drawing, config: ServiceConfig, max_tokens: int | None, logprobs: int | None) -> Decoding:
    """The engine's record.

    Raises:
        ApiError: an answer that is too long, too many of them, a schema that is too large.
    """
    wanted, most = max_tokens or config.engine.default_max_tokens, config.api.max_answers
    if wanted > config.engine.max_tokens:
        raise invalid("max_tokens", f"an answer may have at most {config.engine.max_tokens} tokens here")
    if body.n is not None and body.n > most:
        raise invalid("n", f"{body.n} answers; at most {most} are drawn for one request")
    return Decoding(
        max_tokens=wanted,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        n=body.n or 1,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logprobs=logprobs,
        structure=_structure(body, config.api.max_text_chars),
    )


def _structure(body: Drawing, most: int) -> Structure | None:
    wanted, other = body.response_format, body.structured_outputs
    if other is not None:
        ((name, value),) = other.model_dump(by_alias=True, exclude_unset=True).items()
        return _bounded("structured_outputs", "json_schema" if name == "json" else name, value, most)
    if wanted is None or wanted.type == "text":
        return None
    schema = None if wanted.json_schema is None else wanted.json_schema.schema_
    return _bounded("response_format", wanted.type, schema, most)


def _bounded(field: str, kind: Any, value: Any, most: int) -> Structure:  # noqa: ANN401  of one of the fields above
    size = len(json.dumps(value))
    if size > most:
        raise invalid(field, f"{size} characters; at most {most} are taken")
    return Structure(kind, None if kind == "json_object" else value)
