"""Contenders in processes of their own that take turns: each is stopped while another runs, so that nothing spins.

One side writes requests (``Turn``), the other answers them (``serve``); both are JSON objects, one a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Turn:
    """A process that answers requests; its number of threads and its waiting policy are in its environment."""

    def __init__(
        self, command: Sequence[str], threads: int, policy: str = "PASSIVE", more: Mapping[str, str] | None = None
    ) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy,
            "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "NM_DISABLE_ANALYTICS": "1", **(more or {}),
        }  # fmt: skip
        self._process = subprocess.Popen(
            [*command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; ``failed`` in it says why there is none. Raises RuntimeError where the process has ended."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self._signal("SIGCONT")
        process.stdin.write(json.dumps(request) + "\n")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of a contender ended with code {process.wait()} at {request}")
        self._signal("SIGSTOP")
        return json.loads(line)

    def end(self) -> None:
        """Lets the process finish."""
        self._signal("SIGCONT")
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))


def serve(answer: Answer) -> None:
    """Answers requests on standard input until it ends; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        began = time.perf_counter()
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # a contender that cannot run here is reported, and the others go on
            reply = {
                "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
            }
        replies.write(json.dumps({**reply, "took": time.perf_counter() - began}) + "\n")


def memory() -> dict[str, int]:
    """Bytes of this process: resident now (``rss``), and the most so far (``peak``); Linux."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return {"rss": int(lines["VmRSS"].split()[0]) * 1024, "peak": int(lines["VmHWM"].split()[0]) * 1024}
