"""An executor that is another process as far as objects go."""

from __future__ import annotations

import pickle

import torch


class Stopped(Exception):
    pass


class Elsewhere:
    """What goes in and out is pickled, and the last item is done first; after ``stop`` jobs it raises."""

    local = False

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.jobs = stop, 0

    def map(self, function, shared, items, done=None):
        results = {}
        for index, item in reversed(list(enumerate(items))):
            if self.jobs == self.stop:
                raise Stopped
            self.jobs += 1
            function, shared, item = pickle.loads(pickle.dumps((function, shared, item)))
            torch.manual_seed(self.jobs)  # other processes have other generators
            results[index] = pickle.loads(pickle.dumps(function(shared, item)))
            if done is not None:
                done(index, results[index])
        return [results[i] for i in range(len(results))]
