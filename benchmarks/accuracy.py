"""What a policy answers and keeps on questions, for benchmarks that train policies."""

from collections.abc import Sequence
from pathlib import Path

from cacovid.config import TrainConfig
from cacovid.evaluation.measurer import Measurer, Setup
from cacovid.evaluation.measuring import evaluate
from cacovid.evaluation.result import EvaluationResult
from cacovid.methods.registry import POLICY
from cacovid.policy.base import CompressionPolicy
from cacovid.records import VideoQuestion


def accuracy_of(policy: CompressionPolicy, items: Sequence[VideoQuestion], config: TrainConfig) -> EvaluationResult:
    """All tokens and ``policy`` at ``config.evaluation.retentions``, one question after the other."""
    cache = None if config.data.cache_dir is None else Path(config.data.cache_dir)
    ratios, seed = config.evaluation.retentions, config.run.seed
    setup = Setup(config.model, config.data, cache, (POLICY,), {POLICY: policy}, config.selection, ratios, seed)
    measurer = Measurer(setup)
    return evaluate(measurer.reader, measurer.methods, items, ratios, seed=seed)
