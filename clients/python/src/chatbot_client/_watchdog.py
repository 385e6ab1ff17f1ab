"""Cancels streams that are silent for too long: a thread for all calls of a sync client, which cannot
limit the wait for a single message."""

from __future__ import annotations

import threading
import time
from typing import Any, Optional, Set


class Watch:
    """One stream."""

    def __init__(self, owner: Watchdog, call: Any, limit: float) -> None:
        self._owner = owner
        self._call = call
        self.limit = limit
        self._heard_at = time.monotonic()
        self.silent = False

    def heard(self) -> None:
        self._heard_at = time.monotonic()

    def shorten(self, limit: float) -> None:
        self.limit = min(self.limit, limit)
        self.heard()
        self._owner.look()

    @property
    def due(self) -> float:
        return self._heard_at + self.limit

    def cut(self) -> None:
        self.silent = True
        self._call.cancel()

    def __enter__(self) -> Watch:
        self._owner.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.remove(self)


class Watchdog:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: Set[Watch] = set()
        self._thread: Optional[threading.Thread] = None
        self._stopped = False

    def watch(self, call: Any, limit: float) -> Watch:
        return Watch(self, call, limit)

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="chatbot-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, watch: Watch) -> None:
        with self._changed:
            self._watches.discard(watch)

    def look(self) -> None:
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = time.monotonic()
                late = [watch for watch in self._watches if watch.due <= now]
                self._watches.difference_update(late)
                if not late:
                    due = min((watch.due for watch in self._watches), default=None)
                    self._changed.wait(None if due is None else due - now)
            for watch in late:
                watch.cut()
