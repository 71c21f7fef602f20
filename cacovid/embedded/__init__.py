"""The embedded benchmark: video questions with known evidence and a tiny Video-LLM that answers them."""

from cacovid.models.torchvision_mend import mend_torchvision

# Before anything below this package imports transformers' LLaVA-OneVision, which imports torchvision.
mend_torchvision()
