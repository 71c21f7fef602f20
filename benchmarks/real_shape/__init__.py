"""What a rollout and a learner step cost at the shape of a real Video-LLM, with random weights.

python -m benchmarks.real_shape configs/llava-onevision-7b-paper.toml
"""

import cacovid.models  # noqa: F401 - before transformers imports torchvision
