"""Ray's job API of one cluster, whose errors are a user's one line."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cacovid.errors import UserError
from cluster.ray_cluster import check_reachable

HERE = "http://127.0.0.1:8265"  # where a forwarded port and a cluster of this machine answer


class JobApi:
    """Jobs of the cluster at ``address``: http://host:8265, auto or host:6379.

    Raises:
        UserError: Nobody answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        self.address = address
        check_reachable(address, "--address http://host:8265, the address of its dashboard", {"http": 80, "https": 443})
        # Ray takes this variable, or RAY_ADDRESS, before the address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        with self._one_line():
            self._client = JobSubmissionClient(address)

    @property
    def url(self) -> str:
        """Of the job server."""
        return str(self._client.get_address())

    def submit(self, entrypoint: str, **options: Any) -> str:  # noqa: ANN401 - Ray's own
        """Upload the working directory, submit, and return the job's id."""
        with self._one_line():
            return str(self._client.submit_job(entrypoint=entrypoint, **options))

    def jobs(self) -> list[JobDetails]:
        """All that the cluster knows of, the newest first: submitted ones, and drivers that joined it."""
        with self._one_line():
            return sorted(self._client.list_jobs(), key=lambda job: job.start_time or 0, reverse=True)

    def job(self, id: str) -> JobDetails:
        """One submitted job.

        Raises:
            UserError: There is none of this id.
        """
        with self._one_line(id):
            job = self._client.get_job_info(id)
        if job.submission_id is None:
            raise UserError(f"{id} is a driver that joined the cluster, not a submitted job: see `cacovid jobs list`")
        return job

    def logs(self, id: str) -> str:
        """What the job has printed so far."""
        with self._one_line(id):
            return str(self._client.get_job_logs(id))

    def stop(self, id: str) -> None:
        """Ask the job to end: SIGTERM, and SIGKILL after the seconds that it was submitted with."""
        with self._one_line(id):
            self._client.stop_job(id)

    async def tail(self, id: str) -> AsyncIterator[str]:
        """What the job prints, from its beginning to its end.

        Raises:
            UserError: The connection broke before.
        """
        with self._one_line(id):
            try:
                async for lines in self._client.tail_job_logs(id):
                    yield lines
            except (RuntimeError, aiohttp.ClientError) as error:
                raise UserError(
                    f"lost the log of job {id} at {self.address} ({_first_line(error)}): the job may go on, look again "
                    f"with `cacovid jobs logs {id} --follow`"
                ) from error

    def log_file(self, job: JobDetails, name: str) -> bytes | None:
        """A file among Ray's logs of the machine where the job's driver runs; None if it is not there."""
        if job.driver_node_id is not None:
            where = {"node_id": job.driver_node_id}
        elif job.driver_info is not None:
            where = {"node_ip": job.driver_info.node_ip_address}
        else:
            return None  # it has no driver yet
        with self._one_line():
            answer = self._client._do_request("GET", "/api/v0/logs/file", params={**where, "filename": name})
        return bytes(answer.content) if answer.ok else None

    @contextmanager
    def _one_line(self, id: str | None = None) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise UserError(_about_the_token(self.address, str(error))) from error
        except (ConnectionError, requests.RequestException) as error:
            raise UserError(f"lost the Ray cluster at {self.address!r}: {_first_line(error)}") from error
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            if id is not None and "status code 404" in str(error):
                raise UserError(f"no job {id!r} at {self.address}: see `cacovid jobs list`") from error
            raise UserError(f"the Ray cluster at {self.address!r} refused: {_last_line(error)}") from error


def ended(job: JobDetails) -> bool:
    """Whether the job will do nothing more."""
    return bool(JobStatus(job.status).is_terminal())


def _about_the_token(address: str, error: str) -> str:
    if "Unauthorized" in error or "find an authentication token" in error or "cannot be opened" in error:
        return (
            f"the Ray cluster at {address!r} asks for a token and none was given: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the file ~/.ray/auth_token"
        )
    return (
        f"the Ray cluster at {address!r} refuses the token: see RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the file "
        "~/.ray/auth_token"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _last_line(error: BaseException) -> str:
    """Of a traceback that the server sent, what was wrong; else the whole line."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
