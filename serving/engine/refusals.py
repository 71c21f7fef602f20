"""What becomes of requests where a step of the engine refuses or fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cacovid.errors import UserError
from serving.engine.prompts import Job
from serving.engine.records import Failed
from serving.errors import ApiError, internal_error, overloaded

logger = logging.getLogger("cacovid.serving.engine")


@contextmanager
def refusals(*jobs: Job) -> Iterator[None]:
    """A refusal inside is the jobs' last event, if they have not had it; the batch goes on without them."""
    try:
        yield
        return
    except ApiError as error:
        refusal = error.with_traceback(None)  # whose frames hold the job, and with it a long video's file
    except UserError:  # scores that are not finite: the policy is broken, not the request
        logger.exception("the policy of model %r cannot select", jobs[0].request.model)
        refusal = ApiError(500, "policy_broken", "this model's policy gives no usable scores", "model")
    except torch.OutOfMemoryError:
        logger.warning("out of memory with %d requests: lower engine.max_batch_tokens", len(jobs))
        refusal = overloaded("the model has no memory left for this request", 5)
    except torch.AcceleratorError:
        raise  # the device answers nobody any more
    except Exception:
        logger.exception("%d requests failed inside", len(jobs))
        refusal = internal_error()
    for job in jobs:
        job.emit(Failed(refusal))
