"""What a run will need, worked out from shapes alone: nothing is downloaded, loaded or allocated."""

import cacovid.models  # noqa: F401 - mends torchvision before transformers' models and processors import it
