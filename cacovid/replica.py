"""One frozen Video-LLM with its video reader: what a rollout actor, an evaluation and a service hold."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cacovid.config import DataConfig, ModelConfig
from cacovid.data.cache import EmbeddingCache, feature_key
from cacovid.data.prompting import format_prompt
from cacovid.data.video import content_key, read_frames
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from cacovid.records import VideoQuestion


@dataclass
class Replica:
    """A frozen Video-LLM that reads video questions; an item is decoded and encoded once.

    With a cache, the vision tower runs once for a (video content, model, frame count) on any actor
    that shares the folder.
    """

    video_llm: VideoLLM
    model: ModelConfig
    data: DataConfig
    cache: EmbeddingCache | None = None
    encode_seconds: float = field(default=0.0)  # spent in encode() so far

    @classmethod
    def load(cls, model: ModelConfig, data: DataConfig, cache_dir: Path | None = None) -> Self:
        """Load the model of ``model`` and open the embedding cache in ``cache_dir`` (None: no cache)."""
        cache = EmbeddingCache(cache_dir, data.cache_bytes) if cache_dir and data.cache_bytes else None
        return cls(load_video_llm(model), model, data, cache)

    def encode(self, item: VideoQuestion) -> Encoded:
        """Decode and encode one item with all its video tokens.

        Raises:
            BadItem: The video cannot be read or is too large.
        """
        started = time.perf_counter()
        try:
            return self._encode(item)
        finally:
            self.encode_seconds += time.perf_counter() - started

    def _encode(self, item: VideoQuestion) -> Encoded:
        video = read_frames(item.video, self.model.num_frames, self.data.max_pixels)
        prompt = format_prompt(item, self.data.instruction)
        if self.cache is None:
            return self.video_llm.encode(video.frames, prompt, fps=video.fps)
        key = feature_key(content_key(item.video), self.video_llm.fingerprint, self.model.num_frames)
        features = self.cache.get(key)
        encoded = self.video_llm.encode(video.frames, prompt, fps=video.fps, features=features)
        if features is None:
            self.cache.put(key, encoded.video_features())
        return encoded
