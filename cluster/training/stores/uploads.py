"""Uploads of checkpoints beside training.

    training --submit(step)--> [ waiting: the newest one ] --thread--> store
       ^                                                       |
       '----- check(): the store is silent, or a newer attempt has begun

Training never waits for an upload but at its end.
"""

import logging
import threading
from types import TracebackType
from typing import Self

from cacovid.errors import UserError
from cluster.training.run_directory import RunDirectory
from cluster.training.stores.files import StoreSilent
from cluster.training.stores.parcel import Parcel, drop_all
from cluster.training.stores.run_store import RunStore

logger = logging.getLogger(__name__)


class Uploads:
    """Sends a run's checkpoints to its store, one after the other; without a store it does nothing."""

    def __init__(self, run: RunDirectory, store: RunStore | None, keep: int) -> None:
        self._run, self._store, self._keep = run, store, keep
        self._waiting: Parcel | None = None
        self._sending: Parcel | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, step: int) -> None:
        """Have the checkpoint of ``step``, which is saved, uploaded; one that still waits is given up for it.

        Raises:
            UserError: As :meth:`check`.
            OSError: The disk is full.
        """
        self.check()
        if self._store is None:
            return
        parcel = Parcel.pack(self._run, step)
        with self._changed:
            if self._waiting is not None and self._waiting != parcel:
                logger.info("the checkpoint of step %d is not uploaded: a newer one is there", self._waiting.step)
                self._waiting.drop()
            self._waiting = parcel
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(self._store,), name="uploads", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """See that uploading goes on.

        Raises:
            UserError: It does not; the newest checkpoint is in the run's folder.
        """
        failure = self._failure
        if isinstance(failure, StoreSilent):
            raise UserError(
                f"{failure}: nothing is lost, {self._run.folder} keeps the newest checkpoint; the same command goes on "
                "when the store answers again"
            ) from failure
        if failure is not None:
            raise failure

    def finish(self) -> None:
        """Wait until all is uploaded. Raises UserError as :meth:`check`."""
        with self._changed:
            if not self._done() and self._store is not None:
                step = (self._waiting or self._sending or Parcel(0, self._run.folder)).step
                logger.warning("waiting until the checkpoint of step %d is in %s", step, self._store.shown)
            self._changed.wait_for(self._done)
        self.check()

    def _done(self) -> bool:
        return self._failure is not None or (self._waiting is None and self._sending is None)

    def _work(self, store: RunStore) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting is not None)
                    self._sending, self._waiting = self._waiting, None
                assert self._sending is not None
                store.publish(self._sending, self._keep)
                self._sending.drop()
                with self._changed:
                    self._sending = None
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def __enter__(self) -> Self:
        drop_all(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif not issubclass(kind, Exception):  # Ctrl-C once more
            if self._store is not None:
                self._store.files.give_up()
        elif self._failure is None:  # not the store's own
            try:
                self.finish()
            except UserError as another:
                logger.warning("%s", another)
