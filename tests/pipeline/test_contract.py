"""What every kind of stage has to keep to. A new kind needs its line in SMALL, and in UNKEYED where a field is no part of its key."""

from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from places import REPO
from winnow.errors import InputError
from winnow.pipeline import verb as pipeline_verb
from winnow.pipeline.inputs import open_inputs
from winnow.pipeline.reading import dump, read_recipe
from winnow.pipeline.stages import KINDS, ORDER
from winnow.pipeline.verb import run_recipe

SMALL = {
    "train": {"steps": 4, "lr": 5e-3},
    "ticket": {"sparsity": 0.5, "method": "magnitude", "steps": 3, "lr": 5e-3, "start": "model"},
    "compress": {"baselines": "none", "speed": False, "samples": 32},
    "eval": {"eval_limit": 80},
}
UNKEYED = {"eval": {"data", "column", "label", "max_drop"}}  # the records themselves count; a gate decides no figure
# Something for every field: the first that the field takes, and that it does not have already.
WORDS = [
    "2:4",
    "int8",
    "float32",
    "block",
    "2m",
    "2GB",
    "all",
    "meta",
    "imp",
    "cosine",
    "before",
    "bfloat16",
    "wanda",
    "row",
    "erk",
    "lm",
    "fixed",
]
VALUES = (False, True, 2, 32, 0.5, 0.25, *WORDS, ["a"], {"a": 0.5})


def recipe(small):
    stages = [{kind: small[kind]} for kind in [*ORDER, *(k for k in KINDS if k not in ORDER)]]
    shared = {"model": "small:classifier", "weights": "weights.safetensors", "data": "train.npz", "eval": "test.npz"}
    return yaml.safe_dump({"name": "three clouds", **shared, "stages": stages}, sort_keys=False)


@pytest.fixture
def small(here):
    assert SMALL.keys() == KINDS.keys(), "give every kind of stage an example that is quick to run"
    (here / "small.yaml").write_text(recipe(SMALL))
    return read_recipe("small.yaml")


def changed(stage, name):
    """The stage with another value of one field."""
    given = {k: v for k, v in SMALL[stage.kind].items() if k != stage.alternatives.get(name)}
    for value in VALUES:
        try:
            other = type(stage).model_validate({**given, name: value})
        except ValidationError:
            continue
        if getattr(other, name) != getattr(stage, name):
            return other
    raise AssertionError(f"VALUES has none for {stage.kind}.{name}")


def test_it_is_read_and_written_down(small):
    assert [s.kind for s in small.stages] == list(SMALL) and [s.kind for s in small.stages if s.makes] == ORDER
    assert yaml.safe_load(recipe(SMALL))["stages"] == dump(small)["stages"]
    for kind in KINDS:
        assert (REPO / "docs/guide/training.md").read_text().count(f"- {kind}") and KINDS[kind].__doc__, (
            f"{kind}: say in docs/guide/training.md what it does"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named_with_field_and_line(here, tmp_path, small, kind):
    numbers = [
        n
        for n, f in KINDS[kind].model_fields.items()
        if "bool" not in str(f.annotation) and "Any" not in str(f.annotation)
    ]
    for name, value, words in (("nonsense", 1, "is no field of a"), *((name, True, "must be") for name in numbers)):
        path = tmp_path / "wrong.yaml"
        path.write_text(text := recipe({**SMALL, kind: {**SMALL[kind], name: value}}))
        rows = text.splitlines()
        first = rows.index(f"- {kind}:")
        line = next(i for i, row in enumerate(rows[first:], first + 1) if row.startswith(f"    {name}: "))
        with pytest.raises(InputError) as error:
            read_recipe(path)
        at = f"{path}, line {line}: stages[{list(SMALL).index(kind) + 1}].{kind}.{name}: "
        assert str(error.value).startswith(at) and words in str(error.value)


def test_its_key_follows_every_field_that_decides(small):
    inputs = open_inputs(small)
    base = inputs.keys()
    for number, stage in enumerate(small.stages):
        for name in type(stage).model_fields.keys() - UNKEYED.get(stage.kind, set()):
            stages = [changed(s, name) if s is stage else s for s in small.stages]
            keys = replace(inputs, pipeline=small.model_copy(update={"stages": tuple(stages)})).keys()
            assert keys[:number] == base[:number]
            assert keys[number] != base[number], f"{stage.kind}.{name}"


def test_it_is_done_once_and_resumes_bit_identically(small, tmp_path, monkeypatch):
    seen = set()
    whole = run_recipe("small.yaml", tmp_path / "whole", keep_work=True)
    again = run_recipe("small.yaml", tmp_path / "whole", keep_work=True)
    assert all(s.reused and s.what for s in again.stages) and [s.figures for s in again.stages] == [
        s.figures for s in whole.stages
    ]

    def stop(*_, **__):
        raise KeyboardInterrupt

    for kind in SMALL:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(KINDS[kind], "run", stop)
            run_recipe(
                "small.yaml", tmp_path / "cut", progress=lambda name: seen.add(name.split(":")[0]) or (lambda *_: None)
            )
        planned = run_recipe("small.yaml", tmp_path / "cut", dry_run=True)
        assert [(p.kind, p.finished) for p in planned] == [
            (k, i < list(SMALL).index(kind)) for i, k in enumerate(SMALL)
        ]
        assert all(p.what for p in planned)
        assert not list(tmp_path.rglob(".lock"))  # another process may go on
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline_verb, "publish", stop)
        run_recipe("small.yaml", tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    cut = run_recipe("small.yaml", tmp_path / "cut")
    assert all(s.reused for s in cut.stages)
    assert seen == {f"{i} {kind}" for i, kind in enumerate(list(SMALL)[:-1], 1)}
    for a, b in zip(cut.stages, whole.stages):
        assert (a.key, a.figures.get("value"), a.figures.get("zeros")) == (
            b.key,
            b.figures.get("value"),
            b.figures.get("zeros"),
        )
    tensors = [load_file(tmp_path / name / "model.winnow.safetensors") for name in ("cut", "whole")]
    assert all(t.equal(tensors[1][n]) for n, t in tensors[0].items()) and not (tmp_path / "cut.work").exists()
