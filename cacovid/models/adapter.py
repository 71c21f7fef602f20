"""One interface to frozen Video-LLMs of every family: encode once, compress and answer many times.

    frames -> watch -> VideoFeatures   once a clip, kept by the embedding cache
    VideoFeatures + prompt -> encode -> Encoded   once a question
    Encoded + keep (B, k) -> pack -> first_logits or generate   as often as there are combinations

A family's file supplies what differs: how its tower is run (:meth:`VideoLLM._run_tower`), its position
ids (:meth:`VideoLLM._positions`) and how rows are injected (:meth:`VideoLLM._injection`). Compression uses
transformers' own injection point ``mm_encoder_outputs``; no model code is patched or copied.

Shape legend: B combinations, k retained of N video tokens, M pinned rows, R = k + M, L prompt columns,
T frames, D width, V vocabulary.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cacovid.config import ModelConfig, Numbering, Positions
from cacovid.errors import BadItem, UserError
from cacovid.limits import EMBEDDED_LENGTHS
from cacovid.models.encoded import Encoded, VideoFeatures, joint_grid
from cacovid.models.fingerprint import model_fingerprint, stable_json, text_digest
from cacovid.models.listening import listening
from cacovid.models.options import option_token_ids
from cacovid.models.packing import injected_rows, kept_columns, packed_positions, rows_of
from cacovid.models.tower_attention import Recorder, TowerAttention, pooled_blocks
from cacovid.records import TokenGrid

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]  # of a chat, as transformers' chat templates take them


@dataclass(frozen=True)
class Answers:
    """Greedy continuations of B compressed prompts."""

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]  # without the end token
    finished: tuple[bool, ...]  # False where max_new_tokens cut the answer


class VideoLLM(ABC):
    """A frozen Video-LLM replica with its processor.

    Attributes:
        model: The Hugging Face model in eval mode, no parameter requires a gradient. Its generation
            configuration is reduced to its end and padding tokens: answers are greedy.
        kind: ``config.model_type``.
        hidden_size: Width D of the language model.
    """

    model_types: ClassVar[tuple[str, ...]]
    modality: ClassVar[Literal["video", "image"]] = "video"  # key of mm_encoder_outputs
    has_deepstack: ClassVar[bool] = False  # the tower gives further levels, added after the LLM's first layers
    fewest_frames: ClassVar[int] = 1  # that the processor takes; shorter clips repeat their last frame
    takes_chunks: ClassVar[bool] = False  # frames are read one by one: :meth:`joined` is there

    def __init__(self, model: Any, processor: Any, config: ModelConfig) -> None:  # noqa: ANN401
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.config = config
        self.device = torch.device(model.device)
        self.dtype: torch.dtype = model.dtype
        self.kind: str = model.config.model_type
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.end_tokens = _end_tokens(model, processor.tokenizer)
        pad = processor.tokenizer.pad_token_id
        model.generation_config = GenerationConfig(
            eos_token_id=self.end_tokens, pad_token_id=self.end_tokens[0] if pad is None else pad, do_sample=False
        )
        self._option_tokens: dict[tuple[str, ...], list[int]] = {}

    @property
    def decoder_layers(self) -> Any:  # noqa: ANN401 - an nn.ModuleList
        """The LLM's layers."""
        return self.model.get_decoder().layers

    # What a family supplies -----------------------------------------------------------------------

    @property
    def placeholder_id(self) -> int:
        """Token id of the columns that the video's rows are injected into."""
        config = self.model.config
        return int(config.video_token_id if self.modality == "video" else config.image_token_id)

    @abstractmethod
    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        """Vision tower and projector on the processor's output for one clip."""

    def _tower(self) -> tuple[Any, Any] | None:
        """The vision tower (a PreTrainedModel) and the attention module of its layer that the projector reads.

        None where it cannot be listened to: methods that need the tower's attention are then not defined.
        """
        return None

    def _pool_patches(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """(N, d) float32: what ``patches`` (T, P, d), in the tower's order, are as tokens."""
        return pooled_blocks(patches, grid)

    def _positions(self, input_ids: Tensor, clips: Sequence[VideoFeatures]) -> Tensor:
        """(P, L) position ids of the whole prompt ``input_ids`` (L,)."""
        return torch.arange(input_ids.shape[0], device=input_ids.device).unsqueeze(0)

    def _injection(self, rows: Tensor, deepstack: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        """The model's own output type around ``rows`` (B, R, D) and the deepstack levels, each (B, R, D)."""
        return BaseModelOutputWithPooling(pooler_output=rows)

    def joined(self, chunks: Sequence[VideoFeatures]) -> VideoFeatures:
        """The whole clip's grid, placeholder and pinned rows from those of its ``chunks``; of their rows none.

        Raises:
            UserError: The family's tower or processor looks at all frames together.
        """
        raise UserError(f"models of type {self.kind} read a clip as a whole: leave chunks out")

    def _video_kwargs(self) -> dict[str, Any]:
        """Further arguments for the family's video processor."""
        return {}

    # Encoding -------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Hash of architecture and weights; the same in every process, on every device, as float32 or bfloat16."""
        return model_fingerprint(self.model, self.model.config.to_diff_dict())

    @cached_property
    def encoding_key(self) -> str:
        """Hash of all that decides a clip's features: fingerprint, preprocessing and dtype."""
        preprocessing = self.processor.video_processor.to_dict() | self._video_kwargs()
        return text_digest(self.fingerprint, stable_json(preprocessing), str(self.dtype))

    def encode(self, features: VideoFeatures, prompt: str) -> Encoded:
        """Encode one user turn: the clip that :meth:`watch` made ``features`` of, then the question with its options.

        Raises:
            BadItem: A prompt that contains the model's own placeholder tokens.
        """
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        return self.encode_chat([{"role": "user", "content": content}], [features])

    def watch(self, frames: NDArray[np.uint8], *, fps: float = 1.0, tower_attention: bool = False) -> VideoFeatures:
        """Run processor, vision tower and projector on one clip (T, H, W, 3) uint8 RGB.

        Args:
            frames: The clip; the same features serve every question about it.
            fps: Frames per second of ``frames``, for families that tell the model the time.
            tower_attention: Record what the tower attended to as well; its attention then runs as ``sdpa``.

        Raises:
            BadItem: ``frames`` is not such an array or ``fps`` is not positive.
        """
        inputs, placeholder = self.preprocess(frames, fps)
        # A caller's inference mode would make tensors that a policy could not learn from.
        with torch.inference_mode(False), torch.no_grad():
            watched = self._tower() if tower_attention else None
            if watched is None:
                return self._run_tower(inputs, placeholder, fps).to(self.device, self.dtype)
            return self._run_watched(*watched, inputs, placeholder, fps).to(self.device, self.dtype)

    def _run_watched(
        self,
        tower: Any,  # noqa: ANN401
        module: nn.Module,
        inputs: Mapping[str, Any],
        placeholder: str,
        fps: float,
    ) -> VideoFeatures:
        recorder = Recorder()
        with listening(tower, {module: recorder}):
            clip = self._run_tower(inputs, placeholder, fps)
        rows = self._pool_patches(recorder.patches(clip.grid.frames), clip.grid)
        return replace(clip, tower=TowerAttention(rows[:, 0].contiguous(), rows[:, 1:].contiguous()))

    def preprocess(self, frames: NDArray[np.uint8], fps: float) -> tuple[Mapping[str, Any], str]:
        """The processor's output for one clip, and the text that stands for the clip in a prompt.

        Raises:
            BadItem: As :meth:`watch`, or a clip that the processor refuses, e.g. for its shape.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise BadItem(f"frames of shape {frames.shape} and type {frames.dtype}: give (T, H, W, 3) uint8, T >= 1")
        if not fps > 0:
            raise BadItem(f"fps is {fps}: give the frames per second of the sampled frames, a positive number")
        indices = list(range(frames.shape[0]))
        lacking = self.fewest_frames - len(indices)
        if lacking > 0:
            frames = np.concatenate([frames, frames[-1:].repeat(lacking, axis=0)])
            indices += lacking * indices[-1:]
        try:
            inputs = self.processor(
                text=[self.processor.video_token],
                videos=[frames],
                video_metadata=[{"total_num_frames": len(indices), "fps": fps, "frames_indices": indices}],
                do_sample_frames=False,
                input_data_format="channels_last",
                return_metadata=True,
                return_text_replacement_offsets=True,
                return_tensors="pt",
                **self._video_kwargs(),
            )
        except ValueError as error:
            count, height, width, _ = frames.shape
            raise BadItem(
                f"the model's processor refuses {count} frames of {width}x{height} pixels ({error}): "
                "crop or re-encode the video"
            ) from error
        return inputs, inputs["text_replacement_offsets"][0][0]["replacement"]

    def encode_chat(self, messages: Sequence[Message], clips: Sequence[VideoFeatures]) -> Encoded:
        """Encode a chat of any number of turns, with one of ``clips`` for each ``{"type": "video"}``.

        Clips must have equally many tokens a frame; their steps follow each other in the grid. No clip
        at all gives N = 0, answered with ``keep`` of shape (B, 0).

        Raises:
            BadItem: The text contains the model's own placeholder tokens.
            UserError: Clips of different resolutions or of another model.
        """
        wrong = [clip.features.shape[1] for clip in clips if clip.features.shape[1] != self.hidden_size]
        if wrong:
            raise UserError(f"video features of width {wrong[0]} for a model of width {self.hidden_size}: encode again")
        with torch.inference_mode(False), torch.no_grad():
            clips = [clip.to(self.device, self.dtype) for clip in clips]
            input_ids = self._tokenize(messages, clips)
            return self._assemble(input_ids, clips)

    def rows_as_clip(self, rows: Tensor) -> VideoFeatures:
        """What stands in :meth:`encode_chat` for rows (M, D) that the language model reads as they are.

        They are pinned: never dropped. In the text, :attr:`processor`'s video token marks their place.

        Raises:
            BadItem: Rows of another width or that are not finite, or a model whose tower levels they lack.
        """
        if rows.shape[1] != self.hidden_size:
            raise BadItem(f"rows of width {rows.shape[1]} for a model of width {self.hidden_size}: embed them with it")
        if not rows.isfinite().all():
            raise BadItem("rows that are not finite: embed the text again")
        if self.has_deepstack:
            raise BadItem(f"{self.kind} takes no rows in place of text, for they lack its tower levels: send text")
        token = self.processor.tokenizer.convert_ids_to_tokens(self.placeholder_id)
        empty, slots = rows[:0], tuple(range(rows.shape[0]))
        return VideoFeatures(empty, TokenGrid(0, 0, 0), token * rows.shape[0], rows, slots)

    def encode_text(self, text: str) -> Encoded:
        """Encode plain text, without a chat's template and without a clip (N = 0).

        Raises:
            BadItem: The text contains the model's own placeholder tokens.
        """
        with torch.inference_mode(False), torch.no_grad():
            return self._assemble(self._ids(text), [])

    def _tokenize(self, messages: Sequence[Message], clips: Sequence[VideoFeatures]) -> Tensor:
        parts = self._render(messages).split(self.processor.video_token)
        if len(parts) != len(clips) + 1:
            raise BadItem(
                f"{len(parts) - 1} video placeholders for {len(clips)} clips: "
                f"give one clip each and remove {self.processor.video_token!r} from the text"
            )
        text = parts[0] + "".join(clip.placeholder + part for clip, part in zip(clips, parts[1:], strict=True))
        return self._ids(text)

    def _ids(self, text: str) -> Tensor:
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        # Its warning about long texts would speak of columns that compression drops.
        ids = tokenizer(text, add_special_tokens=not begins, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _render(self, messages: Sequence[Message]) -> str:
        return str(self.processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    def _assemble(self, input_ids: Tensor, clips: Sequence[VideoFeatures]) -> Encoded:
        injected = (input_ids == self.placeholder_id).nonzero().squeeze(1)
        sizes = [clip.features.shape[0] + len(clip.pinned_slots) for clip in clips]
        if injected.shape[0] != sum(sizes):
            raise BadItem(
                f"{injected.shape[0]} placeholder tokens for {sum(sizes)} video tokens: "
                "remove the model's own placeholder tokens from the text"
            )
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        slots = [start + slot for start, clip in zip(starts, clips, strict=True) for slot in clip.pinned_slots]
        is_pinned = torch.zeros(sum(sizes), dtype=torch.bool, device=self.device)
        is_pinned[slots] = True
        video_columns, pinned_columns = injected[~is_pinned], injected[is_pinned]
        is_text = torch.ones_like(input_ids, dtype=torch.bool).index_fill(0, video_columns, False)
        text_columns = is_text.nonzero().squeeze(1)
        empty = torch.zeros(0, self.hidden_size, device=self.device, dtype=self.dtype)
        pinned = torch.cat([clip.pinned for clip in clips] or [empty])
        embeds = self.model.get_input_embeddings()(input_ids[text_columns])
        embeds = embeds.index_copy(0, torch.searchsorted(text_columns, pinned_columns), pinned)
        position_ids = self._positions(input_ids, clips)
        seen = position_ids if position_ids.shape[0] == 1 else position_ids[1:]  # M-RoPE's first row counts columns
        return Encoded(
            input_ids=input_ids,
            position_ids=position_ids,
            grid=joint_grid([clip.grid for clip in clips]),
            features=_joined([clip.features for clip in clips] or [empty]),
            video_columns=video_columns,
            text_columns=text_columns,
            text_embeds=embeds,
            pinned=pinned,
            pinned_columns=pinned_columns,
            reach=int(seen.max()) + 1 if seen.numel() else 0,
            deepstack=tuple(_joined(level) for level in zip(*(clip.deepstack for clip in clips), strict=True)),
            tower=_joint_tower([clip.tower for clip in clips]),
        )

    # Answering from a part of the video -----------------------------------------------------------

    @property
    def trained_length(self) -> int:
        """Positions that the model was trained on, as far as its configuration or ours says."""
        if self.config.trained_length is not None:
            return self.config.trained_length
        if self.config.path in EMBEDDED_LENGTHS:  # their architecture would take more than they have ever seen
            return EMBEDDED_LENGTHS[self.config.path]
        return int(self.model.config.get_text_config().max_position_embeddings)

    def numbering(self, encoded: Encoded, positions: Positions | None = None) -> Numbering:
        """How retained tokens of ``encoded`` are numbered: what ``auto`` comes to, the others as they are.

        Args:
            positions: None takes the configuration's.
        """
        wanted = positions or self.config.positions
        if wanted != "auto":
            return wanted
        return "contiguous" if encoded.reach > self.trained_length else "original"

    def pack(self, encoded: Encoded, keep: Tensor, positions: Positions | None = None) -> dict[str, Any]:
        """Arguments for ``model(...)`` and ``model.generate(...)`` with the video tokens ``keep`` alone.

        Args:
            keep: (B, k) int64 ascending indices into the N video tokens. Text and pinned columns stay.
            positions: As ``config.positions``; None takes that.
        """
        columns = kept_columns(encoded, keep)
        # Without a mask, gaps in the position ids would be read as the borders of packed sequences.
        kwargs: dict[str, Any] = {
            "input_ids": encoded.input_ids[columns],
            "attention_mask": torch.ones_like(columns),
            "position_ids": packed_positions(encoded, columns, self.numbering(encoded, positions)),
        }
        rows = injected_rows(encoded, keep)
        if rows.shape[1]:
            levels = tuple(rows_of(level, keep) for level in encoded.deepstack)
            kwargs["mm_encoder_outputs"] = {self.modality: self._injection(rows, levels)}
        return kwargs

    @torch.inference_mode()
    def first_logits(self, encoded: Encoded, keep: Tensor) -> Tensor:
        """(B, V) logits of the first answer token for each row of ``keep`` (B, k), from the prefill alone.

        At most ``config.max_batch_tokens`` prompt tokens (but at least one prompt) share a forward pass.
        """
        logits = [
            self.model(**self.pack(encoded, rows), use_cache=False, logits_to_keep=1).logits[:count, -1]
            for rows, count in self._batches(encoded, keep, 0)
        ]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    @torch.inference_mode()
    def answer(self, encoded: Encoded, keep: Tensor, max_new_tokens: int | None = None) -> Answers:
        """Greedy answers for each row of ``keep`` (B, k), of at most ``max_new_tokens`` (None: the configuration's).

        Always with cache: transformers' ``generate`` drops an all-ones mask, and without cache it would
        then read gaps in the position ids as the borders of packed sequences.
        """
        answers: list[tuple[int, ...]] = []
        finished: list[bool] = []
        longest = max_new_tokens or self.config.max_new_tokens
        for rows, count in self._batches(encoded, keep, longest):
            prompt = self.pack(encoded, rows)
            output = self.model.generate(**prompt, max_new_tokens=longest, use_cache=True)
            for tokens in output[:count, prompt["input_ids"].shape[1] :].tolist():
                ends = [index for index, token in enumerate(tokens) if token in self.end_tokens]
                answers.append(tuple(tokens[: ends[0]] if ends else tokens))
                finished.append(bool(ends))
        texts = self.processor.tokenizer.batch_decode([list(tokens) for tokens in answers], skip_special_tokens=True)
        return Answers(tuple(text.strip() for text in texts), tuple(answers), tuple(finished))

    def _batches(self, encoded: Encoded, keep: Tensor, new: int) -> Iterator[tuple[Tensor, int]]:
        """Parts of ``keep`` that fit one forward pass with ``new`` tokens a row, each with its number of real rows.

        Flash attention takes a single prompt with gaps in its position ids for packed sequences, whatever
        the mask says, but never a batch: there a lone row is given twice. M-RoPE has no gaps in its text row.
        """
        size = max(1, self.config.max_batch_tokens // (encoded.text_length + keep.shape[1] + new))
        gaps = self.numbering(encoded) == "original" and encoded.position_ids.shape[0] == 1
        twice = gaps and self.config.attention == "flash_attention_2"
        for rows in keep.split(size):
            lone = twice and rows.shape[0] == 1
            yield rows.expand(2, -1) if lone else rows, rows.shape[0]

    def generate(self, encoded: Encoded, keep: Tensor, max_new_tokens: int | None = None) -> list[str]:
        """The texts of :meth:`answer`; logs a warning where any of them was cut."""
        longest = max_new_tokens or self.config.max_new_tokens
        answers = self.answer(encoded, keep, longest)
        cut = answers.finished.count(False)
        if cut:
            logger.warning("%d of %d answers were cut at model.max_new_tokens=%d", cut, keep.shape[0], longest)
        return list(answers.texts)

    def option_tokens(self, letters: Sequence[str]) -> list[int]:
        """Ids of the option letters as the first token of an answer.

        Raises:
            UserError: A letter is no single token of the model's vocabulary.
        """
        key = tuple(letters)
        if key not in self._option_tokens:
            prompt = self._render([{"role": "user", "content": [{"type": "text", "text": "?"}]}])
            self._option_tokens[key] = option_token_ids(self.processor.tokenizer, prompt, key)
        return self._option_tokens[key]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts; one alone is not copied, for it may be a file."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _joint_tower(clips: list[TowerAttention | None]) -> TowerAttention | None:
    known = [clip for clip in clips if clip is not None]
    if not known or len(known) < len(clips):
        return None
    return TowerAttention(torch.cat([each.received for each in known]), torch.cat([each.keys for each in known]))


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Every token that ends an answer, by the generation configuration and the tokenizer.

    Raises:
        UserError: Neither names one: answers would never end.
    """
    configured = model.generation_config.eos_token_id
    tokens = [configured] if isinstance(configured, int) else list(configured or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in tokens:
        tokens.append(tokenizer.eos_token_id)
    if not tokens:
        raise UserError("the model names no end-of-text token: set eos_token_id in its generation_config.json")
    return tokens
