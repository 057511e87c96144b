"""A web hook: posts failed trials and the end of a sweep to an address, from threads of its own."""

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

from experiments.records.ledger import Entry
from experiments.sweep.outcome import Outcome
from experiments.tracking.connection import without_password
from refavs.errors import ConfigError
from refavs.terminal.printing import warn

TIMEOUT_S = 10.0
MOST_FAILURES = 20  # posted one by one; the last message names all failed trials


def refuse_other_addresses(url: str | None) -> None:
    """Refuses what is not a web address.

    Raises:
        ConfigError: the address begins with neither https:// nor http://.
    """
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--notify {url!r}; accepted: an address that begins with https:// or http://")


class WebHook:
    """Posts a JSON object with a `text`, which chat systems show, and the facts.

    A failed post is only reported. Trials never wait for a post; the end of the command does, for at most `TIMEOUT_S`.

    Args:
        url: where to post; None posts nothing.
    """

    def __init__(self, url: str | None, out: Path) -> None:
        self.url, self.out = url, out
        self._posts: list[threading.Thread] = []

    def failed(self, entry: Entry, reason: str) -> None:
        """Posts that a trial failed."""
        if len(self._posts) < MOST_FAILURES:
            text = f"{self.out.name}: {entry.trial.title} failed: {reason}"
            self._post({"event": "trial failed", "text": text, "key": entry.key, "trial": entry.trial.title,
                        "reason": reason})  # fmt: skip

    def ended(self, outcome: Outcome, best: Entry | None) -> None:
        """Posts the end of the sweep, and waits for all posts."""
        states = [entry.state for entry in outcome.entries]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        event = "stopped" if outcome.interrupted else "ended"
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        best_told = f"; best: {best.trial.title}" if best else ""
        self._post({"event": event, "text": f"{self.out.name} {event}: {told}{best_told}", "trials": counts,
                    "failures": outcome.failures, "best": best.trial.title if best else None,
                    "mlflow": without_password(outcome.tracking_uri)})  # fmt: skip
        self._wait()

    def broke(self, error: BaseException) -> None:
        """Posts that the command itself failed, and waits for all posts."""
        reason = f"{type(error).__name__}: {error}"[:2000]
        self._post({"event": "broke off", "text": f"{self.out.name} broke off: {reason}", "reason": reason})
        self._wait()

    def _post(self, facts: dict[str, Any]) -> None:
        if self.url is None:
            return
        body = json.dumps({**facts, "sweep": self.out.name, "folder": str(self.out.resolve())}).encode()
        thread = threading.Thread(target=self._send, args=(self.url, body), name="web hook", daemon=True)
        self._posts.append(thread)
        thread.start()

    def _send(self, url: str, body: bytes) -> None:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            # Unlike urlopen, which keeps the proxies of its first call in this process, with those of now.
            urllib.request.build_opener().open(request, timeout=TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            warn(f"refavs-sweep: a message to the web hook failed ({' '.join(str(error).split())[:200]})")

    def _wait(self) -> None:
        for thread in self._posts:
            thread.join(TIMEOUT_S)
