"""What the learner minimises: records in, loss and metrics out."""

from cacovid.objective.loss import LossOutput, MetricSums, batch_loss
from cacovid.objective.memory import Memory, flatten, is_informative
from cacovid.objective.replay import ReplayBuffer
from cacovid.objective.schedule import learning_rate_multiplier

__all__ = [
    "LossOutput",
    "Memory",
    "MetricSums",
    "ReplayBuffer",
    "batch_loss",
    "flatten",
    "is_informative",
    "learning_rate_multiplier",
]
