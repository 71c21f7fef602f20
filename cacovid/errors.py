"""Errors that a user caused and can mend: one line, the value found, the remedy."""


class UserError(ValueError):
    """Input that we refuse. The command line prints its message alone and exits with code 2.

    The message names the value found and what to do about it; it never needs a traceback.
    """


class BadItem(UserError):
    """One video question that cannot be used; the run sets it aside (``skipped.jsonl``) and goes on."""


class NotDefined(Exception):
    """A method's own definition does not cover this model, clip or budget; the message says why.

    Not a failure: tables show the method's row as not defined, with the reason.
    """
