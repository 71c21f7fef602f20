"""What the learner minimises: records in, loss and metrics out."""

from cacovid.objective.advantage import Advantages, is_informative, item_advantages
from cacovid.objective.loss import LossOutput, MetricSums, batch_loss
from cacovid.objective.replay import ReplayBuffer
from cacovid.objective.schedule import learning_rate_multiplier

__all__ = [
    "Advantages",
    "LossOutput",
    "MetricSums",
    "ReplayBuffer",
    "batch_loss",
    "is_informative",
    "item_advantages",
    "learning_rate_multiplier",
]
