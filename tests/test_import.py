"""`import winnow` costs no more than `import torch`: nothing heavy is loaded before it is used."""

import json
import subprocess
import sys

HEAVY = {
    "transformers", "tokenizers", "accelerate", "datasets", "scipy", "sklearn", "matplotlib", "pydantic", "jinja2",
    "rich", "typer", "yaml", "psutil", "PIL", "pyarrow", "safetensors.torch", "ray",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_loads_nothing_heavy_beyond_torch():
    with_torch = modules_after("import torch")
    added = modules_after("import torch, winnow") - with_torch
    assert not added & HEAVY
    own = {m for m in added if m.split(".")[0] == "winnow"}
    assert "winnow" in own and len(own) < 10
    # Standard-library modules beside our own few are all that may come with it.
    others = {m.split(".")[0] for m in added - own}
    assert others <= set(sys.stdlib_module_names)


def test_lazy_names_resolve():
    import winnow

    for name in winnow.__all__:
        assert getattr(winnow, name) is not None
    assert set(winnow.__all__) <= set(dir(winnow))


def test_unknown_name_is_an_attribute_error():
    import winnow

    try:
        winnow.no_such_thing  # noqa: B018
    except AttributeError as error:
        assert "no_such_thing" in str(error)
    else:
        raise AssertionError("no AttributeError")
