"""When to try again, and when to stop."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

import grpc

from ._errors import Failure, Kind

#: Repetitions of what is not plainly a matter of the connection.
UNCLEAR = 5


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is. Times are in seconds."""

    #: Before the first repetition, about; doubles with each one that brings nothing new.
    initial_backoff: float = 0.05
    max_backoff: float = 5.0
    #: Repetitions in a row that bring nothing new, at most.
    max_attempts: int = 30
    #: Time that may pass without anything new, from the first failure on.
    give_up_after: float = 120.0
    #: Repetitions a second of all calls of a client together, and as many at once as in 10 seconds.
    per_second: float = 20.0

    def backoff(self, attempt: int) -> float:
        """Before the repetition with this number, from 0."""
        longest = min(self.max_backoff, self.initial_backoff * 2.0 ** min(attempt, 30))
        return random.uniform(longest / 2, longest)


@dataclass(frozen=True)
class Retry:
    """Told to `on_retry` before a pause."""

    #: From 1; begins again when something new was heard.
    attempt: int
    #: Seconds.
    wait: float
    failure: Failure


class Budget:
    """Limits the repetitions of all calls of one client, so that many calls do no harm to a server
    that comes back. Calls wait for it, they do not fail by it."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._rate = policy.per_second
        self._most = policy.per_second * 10
        self._left = self._most
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Seconds to wait for one repetition."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._most, self._left + (now - self._at) * self._rate) - 1
            self._at = now
            return max(0.0, -self._left / self._rate)


class Attempts:
    """The repetitions of one call."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: Budget,
        timeout: Optional[float],
        wait_when_busy: bool,
        on_retry: Optional[Callable[[Retry], None]],
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._wait_when_busy = wait_when_busy
        self._on_retry = on_retry
        self._count = 0
        self._since: Optional[float] = None

    def time_left(self) -> Optional[float]:
        """Seconds for the next attempt; None: no limit."""
        return None if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    def heard(self) -> None:
        """Something new has come."""
        self._count = 0
        self._since = None

    def after(self, failure: Failure) -> float:
        """Seconds until the next attempt. Raises where there is none."""
        kind = failure.kind
        if kind in (Kind.TURN, Kind.FATAL) or (kind is Kind.BUSY and not self._wait_when_busy):
            raise failure.error()
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        wait = self._policy.backoff(self._count)
        if failure.retry_after is not None:
            # Not before its time, and not everybody at the same time.
            wait = max(wait, failure.retry_after * random.uniform(1.0, 1.1))
        wait += self._budget.take()
        self._count += 1
        # Whoever waits for another turn to end waits as long as its own limit says.
        patient = kind is Kind.BUSY
        most = self._policy.max_attempts
        if failure.code is not grpc.StatusCode.UNAVAILABLE and failure.retry_after is None:
            # Looks like a broken connection, and may as well be a request that something on the way
            # refuses each time.
            most = min(most, UNCLEAR)
        spent = not patient and (
            self._count > most
            or now + wait > self._since + self._policy.give_up_after
        )
        if spent or (self._deadline is not None and now + wait >= self._deadline):
            raise failure.error()
        if self._on_retry is not None:
            self._on_retry(Retry(self._count, wait, failure))
        return wait
