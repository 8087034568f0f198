"""Calls a function with many items on all cores of this machine, or on those of many machines by Ray.

Results come in any order; whoever needs one order brings it with the item. A function is called by name in another
process, so it is one of a module, and what it is given and returns can be pickled.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: In place of an address: Ray on this machine alone.
RAY_LOCAL = "local"

#: Items that each worker of Ray has waiting, so that it is never idle.
_AHEAD = 4


@dataclass(frozen=True)
class Workers:
    """Where functions run."""

    #: Processes of this machine; with 1, this process itself. None for as many as it may use cores.
    jobs: int | None = None
    #: Address of a Ray cluster, ``auto`` for that of this machine, or `RAY_LOCAL`; None for no Ray.
    ray: str | None = None

    def check(self) -> None:
        """Refuse what cannot run.

        Raises
        ------
        ValueError
            There is no job, or Ray is asked for and not installed.
        """
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"{self.jobs} jobs were asked for; at least one is needed.")
        if self.ray is not None:
            _ray()

    def run(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the function's results, one an item, as they come.

        Raises
        ------
        ValueError
            As `check`, or Ray's cluster cannot be reached.
        """
        self.check()
        if not items:
            return iter(())
        if self.ray is not None:
            return _by_ray(self.ray, self.jobs, function, items)
        jobs = min(len(items), _usable_cores() if self.jobs is None else self.jobs)
        return map(function, items) if jobs == 1 else _by_processes(jobs, function, items)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """State of a worker process: it ends what it does when it is told to, and starts nothing any more."""

    working = False
    stopped = False


def _start_worker() -> None:
    # Ctrl-C reaches all processes of a terminal; the first one then tells the others, each once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop_worker)


def _stop_worker(number: int, frame: object) -> None:
    _Worker.stopped = True
    if _Worker.working:
        raise KeyboardInterrupt  # so that what a function has started ends as on Ctrl-C


def _work(function: Callable[[Item], Result], item: Item) -> Result:
    _Worker.working = True
    try:
        if _Worker.stopped:
            raise KeyboardInterrupt
        return function(item)
    finally:
        _Worker.working = False


def _by_processes(jobs: int, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    # Spawned, not forked: the progress bar has a thread.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        left = {pool.submit(_work, function, item) for item in items}
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise OSError(
            "A worker process has ended before its work was done, as when memory runs out; try again with fewer --jobs."
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError(
            "--ray needs Ray, which is not installed; install it with: pip install 'nimble[ray]', or leave --ray out "
            "to use the cores of this machine."
        ) from None
    return ray


def _by_ray(
    address: str, jobs: int | None, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        try:
            if address == RAY_LOCAL:
                ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False)
            else:
                ray.init(address=address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"No Ray cluster answers at {address!r}: {error}") from None
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(function)
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = list(items)[::-1]
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < most:
                running.append(remote.remote(waiting.pop()))
            done, running = ray.wait(running, num_returns=1)
            yield from ray.get(done)
    finally:
        if own:
            ray.shutdown()
