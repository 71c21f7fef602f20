"""Frozen Video-LLMs behind one interface (:class:`cacovid.models.adapter.VideoLLM`).

Importing this package lets transformers' video processors import torchvision, which they do as soon as one of
their names is taken. Whoever imports those without anything below this package imports the package itself.
"""

from cacovid.models.torchvision_mend import mend_torchvision

mend_torchvision()
