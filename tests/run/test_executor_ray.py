"""Jobs on a small real Ray cluster: two machines of one processor each, on this one."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ray_jobs
import winnow
from winnow.errors import InputError, WinnowError
from winnow.run import executor_ray
from winnow.run.executor import Local, executor_named

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
STORE = 80_000_000  # bytes; the least Ray takes is 78 643 200


@pytest.fixture(scope="module")
def cluster():
    """A head and one more machine, which the last test takes away."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets need a short path
    node = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    (Path(tempfile.gettempdir()) / "ray").mkdir(
        exist_ok=True
    )  # where the cluster leaves its address, on a fresh machine too
    cluster = Cluster()
    try:
        again(lambda: cluster.add_node(temp_dir=folder, **node), cluster.shutdown)
        cluster.second = again(lambda: cluster.add_node(**node), lambda: None)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def there(cluster):
    with executor_named("ray", address=cluster.address, threads=1) as executor:
        yield executor


def again(start, clean):
    """Ray gives a machine 15 s to start its helpers, which is not much for a busy one."""
    for last in (False, False, True):
        try:
            return start()
        except Exception:
            if last:
                raise
            clean()


def test_jobs_give_what_they_give_here(there):
    """A model of the user's own, a closure, tensors: the same bits, in the order of the items, shared things sent once."""
    model = ray_jobs.training().model
    weight = torch.tensor([1.0, 2.0, 0.5])
    shared = (model, lambda out: F.cross_entropy(out, out.detach().argmax(1), weight))
    items = [torch.randn(33, 12, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    threads, told, sent = torch.get_num_threads(), [], []
    put = ray.put
    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(1)
        patch.setattr(ray, "put", lambda value: sent.append(1) or put(value))
        try:
            found = there.map(ray_jobs.product, shared, iter(items), lambda i, r: told.append((i, r)))
            wanted = Local().map(ray_jobs.product, shared, items)
        finally:
            torch.set_num_threads(threads)
    assert [g.numpy().tobytes() for g, _ in found] == [g.numpy().tobytes() for g, _ in wanted]
    assert all(by.split(" on ")[1] == "1" for _, by in found)
    assert str(os.getpid()) not in {by.split(" on ")[0] for _, by in found}
    assert sorted(i for i, _ in told) == list(range(5)) and all(r is found[i] for i, r in told)
    assert len(sent) == 2  # the work and the environment, for five jobs
    assert there.map(ray_jobs.doubled, None, []) == []


def test_whole_searches_with_a_killed_worker_equal_those_here(there, tmp_path, caplog):
    """The retried search finds its stored runs; a loss and a schedule that are closures travel."""
    shared = ray_jobs.training()
    cells = [("magnitude", 1, 2), ("random", 1, 0), ("magnitude", 2, 0)]
    here = [ray_jobs.Whole(m, s, folder(tmp_path / f"here-{m}-{s}"), 0) for m, s, _ in cells]
    away = [ray_jobs.Whole(m, s, folder(tmp_path / f"away-{m}-{s}"), kills) for m, s, kills in cells]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = Local().map(ray_jobs.search, shared, here)
    torch.set_num_threads(threads)
    found = there.map(ray_jobs.search, shared, away)
    assert "job 1 of 3 starts again" in caplog.text
    assert (away[0].store / "killed").stat().st_size == 4  # killed twice; then twice more, once for each ticket
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours) == 2
        for a, b in zip(ours, theirs, strict=True):
            assert type(a.model) is ray_jobs.Net and a.model.tied is a.model.a.weight
            assert same(a.model.state_dict(), b.model.state_dict())
            assert {n: m.bits.tolist() for n, m in a.masks.items()} == {n: m.bits.tolist() for n, m in b.masks.items()}
            assert (a.zeros, a.history, a.cost.main, a.cost.weighted) == (
                b.zeros,
                b.history,
                b.cost.main,
                b.cost.weighted,
            )
    assert not same(wanted[0][0].model.state_dict(), wanted[2][0].model.state_dict())


def test_the_sparsities_of_a_search_are_jobs(there):
    given = ray_jobs.training()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = winnow.find_ticket(given, sparsity=[0.5, 0.8], method="magnitude").tickets
    torch.set_num_threads(threads)
    for ours, theirs in zip(
        winnow.find_ticket(given, sparsity=[0.5, 0.8], method="magnitude", executor=there).tickets, wanted, strict=True
    ):
        assert ours.zeros == theirs.zeros and same(ours.model.state_dict(), theirs.model.state_dict())


def test_results_come_home_as_the_callers_own(there):
    """Models of its classes, arrays it may write to, classes of modules that only the worker had imported."""
    sys.modules.pop("ray_late", None)
    (model, more), _ = there.map(ray_jobs.makes, ray_jobs.training().model, [3, 4])
    more["array"] += 1
    import ray_late

    assert type(model) is ray_jobs.Net and more["array"][0] == 4
    assert type(more["late"]) is ray_late.Late and more["late"].number == 3


def test_environment_variables_reach_the_workers(cluster, there):
    given = executor_named("ray", address=cluster.address, threads=1, env={"WINNOW_TEST_GREETING": "hello"})
    assert given.map(ray_jobs.variable, "WINNOW_TEST_GREETING", [0]) == ["hello"]


def test_results_are_told_as_they_come_and_a_restart_does_the_rest(there, tmp_path):
    told = []
    assert there.map(ray_jobs.last_is_quick, tmp_path, [0, 1], lambda i, r: told.append(i)) == [0, 1]
    assert told == [1, 0]

    stored = {}

    def store(index, result):
        if len(stored) == 2:
            raise OSError("the disk is full")
        stored[index] = result

    with pytest.raises(OSError, match="disk is full"):
        there.map(ray_jobs.doubled, None, range(6), store)
    missing = [i for i in range(6) if i not in stored]
    assert len(missing) == 4
    begun = folder(tmp_path / "begun")
    rest = dict(zip(missing, there.map(ray_jobs.doubled, begun, missing), strict=True))
    assert [(stored | rest)[i] for i in range(6)] == Local().map(ray_jobs.doubled, None, range(6))
    assert sorted(int(p.name) for p in begun.iterdir()) == missing


def test_errors_of_a_job_are_raised_as_they_are_and_not_tried_again(there, tmp_path):
    with pytest.raises(InputError) as error:
        there.map(ray_jobs.refuses, tmp_path, [1])
    assert type(error.value) is InputError and str(error.value) == "item 1 cannot be used: leave it out."
    assert error.value.__cause__ is None and (tmp_path / "1").stat().st_size == 1
    with pytest.raises(KeyError) as other:
        there.map(ray_jobs.refuses, tmp_path, [2])
    assert type(other.value) is KeyError and other.value.args == ("item 2",)
    assert "ray_jobs.py" in str(other.value.__cause__)  # where it happened
    assert (tmp_path / "2").stat().st_size == 1


def test_a_job_that_loses_every_worker_is_one_sentence(cluster, there, tmp_path):
    told = []
    few = executor_named("ray", address=cluster.address, threads=1, retries=1, workers=1)
    with pytest.raises(
        WinnowError, match=r"job 2 of 3 lost its worker 2 times \(.*\): see whether it needs more"
    ) as error:
        few.map(ray_jobs.dies, tmp_path, [0, 1, 2], lambda i, r: told.append(i))
    assert "\n" not in str(error.value) and error.value.exit_code == 1
    assert (tmp_path / "1").stat().st_size == 2
    assert told == [0] and not (tmp_path / "2").exists()  # one at a time, in order


def test_what_cannot_be_done_is_said(cluster, there, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be sent to another process.*open files"):
        there.map(ray_jobs.doubled, (i for i in range(3)), [1])
    with pytest.raises(InputError, match=r"connected to the Ray cluster at .* already"):
        executor_named("ray", address="10.0.0.1:6379").map(ray_jobs.doubled, None, [1])
    monkeypatch.setattr(executor_ray, "PATIENCE", 0.0)
    with pytest.raises(
        WinnowError, match=r"no machine of the Ray cluster \(2 there, the largest with 1 proc.* has the 2 proc"
    ):
        executor_named("ray", threads=2).map(ray_jobs.doubled, None, [1])
    with pytest.raises(WinnowError, match="has the 1 processors and 1e\\+06 GB of one job"):
        executor_named("ray", threads=1, memory=10**15).map(ray_jobs.doubled, None, [1])
    for option in ({"workers": 0}, {"threads": 0}, {"retries": -1}, {"memory": 0}):
        with pytest.raises(InputError, match="makes no sense"):
            executor_named("ray", **option)


def test_modules_of_ones_own_travel_as_source(tmp_path, monkeypatch):
    from winnow.run.shipping import ShippedModules, user_modules

    package = folder(tmp_path / "carried_package")
    (package / "__init__.py").write_text("from carried_package.part import value\n")
    (package / "part.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("carried_package")
    sources = user_modules()
    assert {"carried_package", "carried_package.part", "ray_jobs"} <= set(sources)
    assert not {m.split(".")[0] for m in sources} & {"torch", "ray", "winnow", "os", "__main__"}

    mine = {n: s for n, s in sources.items() if n.startswith("carried_package")}
    shutil.rmtree(package)
    for changed in (mine, mine | {"carried_package.part": ("value = 8\n", "part.py", False)}):
        for name in mine:
            sys.modules.pop(name, None)
        ShippedModules.install(changed)
        found = importlib.import_module("carried_package")
        assert found.value == (7 if changed is mine else 8)
        assert found.part.__file__ and found.__path__
    ShippedModules.install({})
    assert "carried_package" not in sys.modules
    sys.meta_path.remove(ShippedModules.current)
    ShippedModules.current = None


def test_a_lost_machine_does_not_change_the_result(cluster, there, tmp_path):
    """Both machines have a job when one goes; afterwards the other does both."""
    import threading

    def take_away():
        for item in (0, 1):
            ray_jobs.wait_for(tmp_path / f"begun-{item}")
        cluster.remove_node(cluster.second, allow_graceful=False)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    found = there.map(ray_jobs.stays_until, tmp_path, range(4))
    thread.join()
    begun = [(tmp_path / f"begun-{i}").stat().st_size for i in range(4)]
    assert sum(begun) > 4 and max(begun[:2]) == 2  # at least the one that was on it began again
    wanted = Local().map(ray_jobs.stays_until, tmp_path, range(4))
    assert [i for i, _ in found] == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))


SCRIPT = """
    import os, random, signal, sys, threading, time
    from pathlib import Path

    import torch

    from winnow.errors import InputError
    from winnow.run.executor import executor_named

    class Net(torch.nn.Linear):
        built = 0

        def __init__(self):
            super().__init__(4, 2)
            Net.built += 1

    def job(shared, item):
        Net.built += 10
        with torch.no_grad():
            shared.weight.mul_(item)
        return shared

    def long(shared, item):
        (shared / f"begun-{item}").touch()
        time.sleep(60)

    def interrupt(folder):
        while not list(folder.iterdir()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            executor_named("ray", address="127.0.0.1:1").map(job, None, [1])
        except InputError as error:
            assert "no Ray cluster can be reached at '127.0.0.1:1'" in str(error)
        state = random.getstate()
        with executor_named("ray", workers=1, threads=1, object_store=80_000_000) as executor:
            net = Net()
            found = executor.map(job, net, [1.0, 2.0])
            assert random.getstate() == state
            assert [type(f) for f in found] == [Net, Net] and Net.built == 1
            assert torch.equal(found[1].weight, 2 * net.weight)
            import ray

            assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
            assert ray.cluster_resources()["CPU"] == 1
            threading.Thread(target=interrupt, args=(folder,)).start()
            try:
                executor.map(long, folder, range(3))
            except KeyboardInterrupt:
                print("interrupted")
        assert not ray.is_initialized()
"""


def test_a_script_starts_its_own_cluster_and_ctrl_c_ends_it(tmp_path):
    """What ``__main__`` defines travels both ways; jobs that had not begun never do."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    marks = folder(tmp_path / "marks")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), str(marks)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["interrupted"]
    assert [p.name for p in marks.iterdir()] == ["begun-0"]


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
