"""Frozen Video-LLMs behind one interface (:class:`cacovid.models.adapter.VideoLLM`)."""

from cacovid.models.torchvision_mend import mend_torchvision

# Before anything below this package imports transformers' video processors, which import torchvision.
mend_torchvision()
