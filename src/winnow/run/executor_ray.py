"""Independent jobs on a Ray cluster, with the results of :class:`winnow.run.executor.Local`, bit for bit."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from winnow.errors import InputError, WinnowError
from winnow.run.jobs import Done, Function, R

LOOK = 5.0  # seconds between two looks at which machines are there, while nothing ends
PATIENCE = 60.0  # seconds to wait for a machine large enough for a job
log = logging.getLogger(__name__)


class Ray:
    """Runs jobs as remote tasks of a Ray cluster; the workers need the same winnow and torch, nothing else of the caller's.

    What the jobs share is stored once per machine. A job whose worker or machine is lost starts again; an error of the job
    itself is raised at once, as it is. The cluster is connected to, or started, at the first :meth:`map`, and stopped at
    :meth:`close`, at the end of a ``with``, or when the process ends. No usage statistics are sent, no dashboard is started.

    Results equal those of the local executor for the same number of threads, on processors with the same instruction set; a
    warning tells where that differs.

    Args:
        address: ``host:port`` of a running cluster, or ``"auto"``. Without one the environment variable RAY_ADDRESS, then
            the cluster that this process is connected to already, then a new one on this machine.
        workers: jobs at a time; None for as many as there are processors for.
        threads: of each job, and processors reserved for it; None for the number that torch uses here.
        memory: bytes reserved for each job; None reserves nothing.
        retries: how often a job is started again after its worker was lost.
        env: environment variables for the workers.
        object_store: bytes for shared objects in a cluster started here; None for Ray's default, 30% of the memory.

    Raises:
        InputError: Ray is not installed, or an option makes no sense.
    """

    local = False

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        threads: int | None = None,
        memory: int | None = None,
        retries: int = 3,
        env: Mapping[str, str] | None = None,
        object_store: int | None = None,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before anything of Ray runs
        try:
            import ray  # noqa: F401
        except ImportError:
            raise InputError("Ray is not installed: pip install 'winnow-nn[ray]', or use executor local.") from None
        for name, value, least in (
            ("workers", workers, 1), ("threads", threads, 1), ("memory", memory, 1), ("retries", retries, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise InputError(f"{name}={value} makes no sense to the ray executor: give {least} or more.")
        self.address, self.workers, self.threads, self.memory = address, workers, threads, memory
        self.retries, self.env, self.object_store = retries, dict(env or {}), object_store
        self._connected = self._started = False

    def map(self, function: Function[R], shared: Any, items: Iterable[Any], done: Done[R] = None) -> list[R]:
        """See :meth:`winnow.run.executor.Executor.map`.

        Raises:
            InputError: the job cannot be sent, or the cluster cannot be reached.
            WinnowError: a job lost its worker more than ``retries`` times, or no machine is large enough for it.
        """
        items = list(items)
        if not items:
            return []
        threads = self.threads or torch.get_num_threads()
        ray = self._connect(threads)
        from ray import exceptions

        from winnow.run.shipping import environment, instructions, pack, run_job, unpack

        # The retries are counted here, not by Ray: it restarts a job that runs out of memory without end.
        options: dict[str, Any] = {"num_cpus": threads, "max_retries": 0}
        if self.memory is not None:
            options["memory"] = self.memory
        if self.env:
            options["runtime_env"] = {"env_vars": self.env}
        remote = ray.remote(run_job).options(**options)
        names = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        lost = tuple(getattr(exceptions, name) for name in names)
        results: dict[int, R] = {}
        waiting, tries = deque(range(len(items))), [0] * len(items)
        running: dict[Any, int] = {}
        room_seen = time.monotonic()
        try:
            sent, work = ray.put(environment(threads)), ray.put(pack((function, shared)))
            while waiting or running:
                room = self._room(ray, threads)
                if room:
                    room_seen = time.monotonic()
                elif self._started or time.monotonic() - room_seen > PATIENCE:
                    raise WinnowError(self._too_small(ray, threads))
                # Twice as many as there is room for: a worker that is done finds the next job at once.
                while waiting and len(running) < (self.workers or max(1, 2 * room)):
                    index = waiting.popleft()
                    running[remote.remote(sent, work, pack(items[index]))] = index
                for reference in ray.wait(list(running), num_returns=1, timeout=LOOK)[0]:
                    index = running.pop(reference)
                    try:
                        data, computed_with = ray.get(reference)
                    except lost as error:
                        tries[index] += 1
                        reason = _reason(error)
                        if tries[index] > self.retries:
                            raise WinnowError(
                                f"job {index + 1} of {len(items)} lost its worker {tries[index]} times ({reason}): see whether it "
                                "needs more memory than there is (fewer workers, or memory=bytes of one job) or give more retries."
                            ) from None
                        log.warning("job %d of %d starts again: %s", index + 1, len(items), reason)
                        waiting.appendleft(index)
                        continue
                    if computed_with != instructions():
                        warnings.warn(
                            f"a worker computes with {computed_with}, this machine with {instructions()}: results may differ in "
                            "the last bits.",
                            stacklevel=2,
                        )
                    results[index] = unpack(data)
                    if done is not None:
                        done(index, results[index])
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, WinnowError):
                raise cause from None
            if isinstance(cause, Exception) and not isinstance(cause, exceptions.RayError):
                raise cause from Elsewhere(str(error))
            raise WinnowError(f"a job failed in a worker: {str(error).splitlines()[-1]}") from error
        except exceptions.RuntimeEnvSetupError as error:
            raise InputError(f"a worker could not be set up ({_reason(error)}): look at env and the cluster.") from None
        except exceptions.RayError as error:
            raise WinnowError(f"the Ray cluster failed ({_reason(error)}): run again.") from error
        finally:
            for reference in running:  # after an error or Ctrl-C
                ray.cancel(reference, force=True)
        return [results[i] for i in range(len(items))]

    def close(self) -> None:
        """Leaves the cluster, and stops it if it was started here; a later :meth:`map` connects again."""
        if self._connected:
            import ray

            ray.shutdown()
        self._connected = self._started = False

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, threads: int) -> Any:
        import ray

        if ray.is_initialized():
            there = ray.get_runtime_context().gcs_address
            if self.address not in (None, "auto", there):
                raise InputError(
                    f"this process is connected to the Ray cluster at {there} already: call ray.shutdown() before you use "
                    f"{self.address}."
                )
            return ray
        address = self.address or os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address:
            try:
                _knock(address)
                ray.init(address=address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"no Ray cluster can be reached at {address!r} ({_reason(error)}): start one with `ray start`, or give no "
                    "address to have one started on this machine."
                ) from None
        else:
            processors = threads * self.workers if self.workers else max(threads, _processors())
            self._start(
                ray, num_cpus=processors, object_store_memory=self.object_store, include_dashboard=False, **quiet
            )
            self._started = True
        self._connected = True
        return ray

    def _start(self, ray: Any, **options: Any) -> None:
        """A cluster on this machine. Ray gives up after 15 s without its helpers, so a busy machine gets three tries."""
        state = random.getstate()  # Ray names its parts by the caller's random numbers
        constants = ray._private.ray_constants
        several = constants.ENABLE_RAY_CLUSTER
        for last in (False, False, True):
            try:
                constants.ENABLE_RAY_CLUSTER = False  # listen on loopback only: whoever reaches Ray can run code here
                ray.init(address="local", **options)
                break
            except Exception as error:  # Ray raises the bare class
                ray.shutdown()
                if last:
                    raise WinnowError(
                        f"no Ray cluster could be started on this machine ({_reason(error)}): run again when it is less busy, or "
                        "start one with `ray start --head` and give its address."
                    ) from error
            finally:
                random.setstate(state)
                constants.ENABLE_RAY_CLUSTER = several

    def _room(self, ray: Any, threads: int) -> int:
        """Jobs that fit on the machines that are there, all together."""
        room = 0
        for there in (node["Resources"] for node in ray.nodes() if node["Alive"]):
            fit = there.get("CPU", 0) // threads
            room += int(fit if self.memory is None else min(fit, there.get("memory", 0) // self.memory))
        return room

    def _too_small(self, ray: Any, threads: int) -> str:
        needed = f"{threads} processors" + ("" if self.memory is None else f" and {self.memory / 1e9:.3g} GB")
        alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        processors, memory = (max((r.get(what, 0) for r in alive), default=0) for what in ("CPU", "memory"))
        return (
            f"no machine of the Ray cluster ({len(alive)} there, the largest with {processors:g} processors and "
            f"{memory / 1e9:.3g} GB) has the {needed} of one job: give fewer threads or less memory, or add machines."
        )


class Elsewhere(Exception):
    """The traceback of a job's error, in the worker where it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _knock(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(error: BaseException) -> str:
    """The first sentence of one of Ray's long messages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.split('. ')[0][:200].rstrip('.')}"
