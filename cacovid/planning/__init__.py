"""What a run will need, worked out from shapes alone: nothing is downloaded, loaded or allocated."""

from cacovid.models.torchvision_mend import mend_torchvision

# transformers' models and video processors import torchvision.
mend_torchvision()
