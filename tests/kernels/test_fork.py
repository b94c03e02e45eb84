"""Packed models in forked processes: the threads of the parent are not there, and nobody waits for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

RUN = """
    import json, os, signal, sys
    import torch
    from torch import nn
    from winnow.kernels import expanded, multiply, native
    from winnow.kernels.matrix import PackedMatrix
    from winnow.kernels.modules import PackedLinear

    torch.set_num_threads(2)
    torch.manual_seed(0)
    size = int(sys.argv[1])
    weight = torch.randn(size, size) * (torch.rand(size, size) < 0.5)
    matrix = PackedMatrix.from_dense(weight)
    model = nn.Sequential(PackedLinear(matrix), nn.ReLU(), nn.Linear(size, 3)).eval()
    x = torch.randn(64, size)

    def run():
        with torch.inference_mode():
            for way in ("packed", "spmm", "expanded"):
                model[0].ways = [(float("inf"), way)]
                y = model(x)
            expanded.expand(matrix)
            return y

    def forked(work):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                os._exit(0 if work() else 3)
            except BaseException:
                os._exit(4)
        return os.waitpid(pid, 0)[1]

    def tasks():
        return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None

    product = x @ weight.T
    expected = run()
    same = lambda: bool(torch.allclose(run(), expected, atol=1e-5))

    def threaded():
        if not native.available():
            return same()
        torch.set_num_threads(4)  # for the kernels; torch's own products would wait for ever
        before = tasks()
        y = multiply.linear(matrix, x)
        started = tasks() is None or (tasks() > before) == (size > 64)
        return started and bool(((y - product).abs() < 1e-3).all())

    grandchild = lambda: same() and forked(same) == 0
    print(json.dumps([forked(same), forked(grandchild), forked(threaded), forked(same)]))
"""


@pytest.mark.parametrize("size", [16, 512])
def test_a_forked_child_answers(size):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), str(size)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 0, 0]


SMALL = """
    import os, sys, torch
    from winnow.kernels import expanded, multiply, native
    from winnow.kernels.matrix import PackedMatrix

    def tasks():
        return len(os.listdir("/proc/self/task"))

    matrix = {n: PackedMatrix.from_dense(torch.randn(n, n)) for n in (24, 1024)}
    native.available()
    torch.set_num_threads(4)
    before = tasks()
    for n in (24, 1024):
        multiply.linear(matrix[n], torch.ones(2, n))
        print(tasks() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_tiny_matrix_wakes_no_threads():
    from winnow.kernels import native

    if not native.available():
        pytest.skip("needs the native kernels")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SMALL)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert small == 0 and large > 0, (done.stdout, done.stderr)
