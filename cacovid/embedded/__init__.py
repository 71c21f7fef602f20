"""The embedded benchmark: video questions with known evidence and a tiny Video-LLM that answers them."""

import cacovid.models  # noqa: F401 - before transformers imports torchvision
