"""Work that can be killed: stored stages, executors, and what makes two computations the same."""
