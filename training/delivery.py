"""Work that may fail for long without anybody waiting for it: done in a thread, again and again until it succeeds."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from infra.cli import say

# seconds until the next try: after a first failure, at most, and when the end is near
FIRST_WAIT, LONGEST_WAIT, LAST_WAIT = 2.0, 60.0, 1.0
PAUSE = 5.0
"""Seconds between two deliveries: a thread that works takes time from the training."""


class Delivery:
    """Calls `deliver` whenever there is something new, and ever more slowly while it fails.

    Args:
        deliver: delivers everything that is there, or raises; what it had delivered before is its own to remember.
        where: the receiver, for the one line when it fails and the one when it works again.
    """

    def __init__(self, deliver: Callable[[], None], where: str) -> None:
        self._deliver, self._where = deliver, where
        self._thread = threading.Thread(target=self._work, name=where, daemon=True)
        self._news, self._closing, self._over = threading.Event(), threading.Event(), threading.Event()
        self.fault = ""
        """Why it does not succeed at present."""

    def start(self) -> None:
        """May be called again."""
        if not self._thread.is_alive() and not self._closing.is_set():
            self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._news.set()

    def finish(self, patience: float) -> bool:
        """Whether all is delivered, waiting for it `patience` seconds at most. Nothing new may come after it."""
        self.start()
        self._closing.set()
        self._news.set()
        self._thread.join(patience)
        self._over.set()
        return not self._thread.is_alive()

    def _work(self) -> None:
        wait = FIRST_WAIT
        while not self._over.is_set():
            closing = self._closing.is_set()
            if self._tried():
                if closing:
                    return
                wait = FIRST_WAIT
                self._closing.wait(PAUSE)
                self._news.wait()
                self._news.clear()
            elif closing:
                self._over.wait(LAST_WAIT)
            else:
                self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _tried(self) -> bool:
        before, self.fault = self.fault, self._failure()
        if self._over.is_set():  # nobody waits for it any more
            return not self.fault
        if self.fault and not before:
            say(f"{self._where} does not answer ({self.fault}): it is asked again in the background")
        if before and not self.fault:
            say(f"{self._where} answers again")
        return not self.fault

    def _failure(self) -> str:
        try:
            self._deliver()
        except Exception as error:  # noqa: BLE001  whatever a receiver does, nobody else fails by it
            return reason(error)
        return ""


def reason(error: BaseException) -> str:
    """The first cause of an error, in one short line, without secrets."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    lines = str(error).splitlines() or [type(error).__name__]
    return without_secrets(lines[0])[:200]


def without_secrets(text: str) -> str:
    """A text without what may be secret in the addresses that it names: user and password, and the query."""
    return re.sub(r"(?<=//)\S*@|\?\S+", "", text)
