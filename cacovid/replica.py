"""One frozen Video-LLM with its video reader: what a rollout actor, an evaluation and a service hold."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from cacovid.config import DataConfig, ModelConfig
from cacovid.data.cache import EmbeddingCache, feature_key
from cacovid.data.prompting import format_prompt
from cacovid.data.video import content_key, read_frames
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded, VideoFeatures
from cacovid.models.loading import load_video_llm
from cacovid.records import VideoQuestion

NO_FRAMES = np.empty((0, 0, 0, 3), dtype=np.uint8)  # not looked at where features are given


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
        features = self._watch_cached(item.video) if self.cache else self._watch(item.video)
        prompt = format_prompt(item, self.data.instruction)
        return self.video_llm.encode(NO_FRAMES, prompt, features=features)

    def _watch_cached(self, video: str) -> VideoFeatures:
        assert self.cache is not None
        key = feature_key(content_key(video), self.video_llm.encoding_key, self.model.num_frames)
        features = self.cache.get(key)
        if features is None:
            features = self._watch(video)
            self.cache.put(key, features)
        return features

    def _watch(self, path: str) -> VideoFeatures:
        video = read_frames(path, self.model.num_frames, self.data.max_pixels)
        return self.video_llm.watch(video.frames, fps=video.fps)
