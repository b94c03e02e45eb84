"""Every family goes through the whole verb: compressed exactly, saved, loaded by transformers, same outputs."""

import pytest
import torch

import winnow
from families import FAMILIES
from winnow.forward.batch import call

pytest.importorskip("transformers")
pytestmark = pytest.mark.hf


def outputs(model, batch):
    with torch.no_grad():
        found = call(model, batch)
    if torch.is_tensor(found):
        return found
    for key in ("logits", "logits_per_image", "last_hidden_state"):
        if key in found:
            return found[key]
    raise AssertionError(f"no output to compare in {list(found)}")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_family_end_to_end(family, method, tmp_path):
    model = family.build()
    data = family.batches()[0]
    dense = outputs(model, data)
    result = winnow.compress(model, data, sparsity=0.5, method=method, values="int8", task="none", baselines="none")
    assert sum(x.zeros for x in result.layers) == round(0.5 * family.weights)
    here = outputs(result.model, data)
    assert torch.isfinite(here).all() and not torch.equal(here, dense)
    assert torch.equal(outputs(model, data), dense)
    folder = result.save(tmp_path / "out")
    factory = None if hasattr(model, "config") else family.build
    loaded = winnow.load(folder, factory=factory)
    assert torch.equal(outputs(loaded, data), here)
