"""One file per command of ``cacovid``."""
