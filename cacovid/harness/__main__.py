"""``python -m cacovid.harness``: the ``lmms-eval`` command where it cannot be started by its own name.

Beside a CPU build of torch, PyPI's torchvision fails at import; lmms-eval imports it before any plug-in is asked.
"""

from cacovid.models.torchvision_mend import mend_torchvision

if __name__ == "__main__":
    mend_torchvision()
    from lmms_eval.cli.dispatch import main

    main()
