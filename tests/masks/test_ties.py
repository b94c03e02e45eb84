"""One tensor under several names: found by its memory, written once, the same whichever way it is loaded."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import winnow
from winnow.errors import FormatError, InputError
from winnow.masks.scope import find_scope
from winnow.masks.ties import overlapping, share_as, tensors_of, tied

PICK = {"sparsity": 0.5, "method": "magnitude", "baselines": "none", "speed": False}


def elements(t):
    """The addresses of a tensor's elements, in its order: slow and sure."""
    places = torch.arange(t.untyped_storage().nbytes() // t.element_size())
    return places.as_strided(t.shape, t.stride(), t.storage_offset())


@st.composite
def views(draw):
    """Views of two storages: slices, transposes, steps, shapes."""
    bases = [torch.randn(24), torch.randn(24)]
    found = {}
    for i in range(draw(st.integers(2, 6))):
        base = bases[draw(st.integers(0, 1))]
        start, rows, cols = draw(st.integers(0, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
        strides = draw(st.sampled_from([(cols, 1), (1, rows), (4, 1), (1, 4), (2, 1)]))
        found[f"t{i}"] = base.as_strided((rows, cols), strides, start)
    return found


@given(views())
@settings(max_examples=200, deadline=None)
def test_same_and_overlapping_are_what_the_addresses_say(tensors):
    groups, others = tied(tensors), overlapping(tensors)
    for a, x in tensors.items():
        for b, y in tensors.items():
            one = x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
            p, q = elements(x), elements(y)
            same = a == b or (one and p.shape == q.shape and torch.equal(p, q))
            assert (b in groups[a]) is same
            meet = one and bool(set(p.flatten().tolist()) & set(q.flatten().tolist()))
            assert (b in others.get(a, ())) is (meet and not same)


class Net(nn.Module):
    def __init__(self, tie=None):
        super().__init__()
        torch.manual_seed(1)
        self.e, self.a, self.b, self.c = nn.Embedding(20, 20), nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.n1, self.n2, self.d = nn.LayerNorm(20), nn.LayerNorm(20), nn.Linear(20, 10, bias=False)
        self.o = nn.Linear(20, 5)
        with torch.no_grad():
            self.n1.weight.uniform_(0.5, 1.5), self.n2.weight.uniform_(0.5, 1.5)
        if tie is not None:
            tie(self)

    def forward(self, i):
        x = self.n1(torch.relu(self.a(self.e(i))))
        x = torch.relu(self.c(self.n2(torch.relu(self.b(x)))))
        return self.o(x) + self.d(x).sum(-1, keepdim=True)


def two(m):
    m.b.weight = m.a.weight


def three(m):
    m.b.weight = m.c.weight = m.a.weight


def embedding(m):
    m.b.weight = m.e.weight


def by_data(m):
    m.b.weight.data = m.a.weight.data


def small(m):
    m.b.bias, m.n2.weight, m.n2.bias = m.a.bias, m.n1.weight, m.n1.bias


def module(m):
    m.c = m.b


def transposed(m):
    m.b.weight = nn.Parameter(m.a.weight.data.t())


def part(m):
    m.d.weight = nn.Parameter(m.a.weight.data[5:15])


def apart(m):
    both = torch.randn(20, 40) * 0.2  # columns of one storage that share nothing
    m.a.weight, m.b.weight = nn.Parameter(both[:, :20]), nn.Parameter(both[:, 20:])


SHARED = {
    two: ["a.weight", "b.weight"], three: ["a.weight", "b.weight", "c.weight"], embedding: ["e.weight", "b.weight"],
    by_data: ["a.weight", "b.weight"], module: ["b.weight", "c.weight"], small: ["a.weight"],
    transposed: ["a.weight", "b.weight"], part: ["a.weight", "d.weight"], apart: [],
}  # fmt: skip
ONE_TENSOR = (two, three, embedding, by_data, module)
CASES = [(tie, name, torch.float32) for tie, names in SHARED.items() for name in (None, *names)]
CASES += [(tie, next(iter(names), None), torch.bfloat16) for tie, names in SHARED.items()]


def run(model, x):
    with torch.inference_mode():
        return model(x)


@pytest.mark.parametrize(("tie", "name", "dtype"), CASES, ids=[f"{t.__name__}-{n}-{d}" for t, n, d in CASES])
def test_every_way_of_loading_is_the_result(tmp_path, tie, name, dtype):
    def build():
        return share_as(Net(tie), Net(tie).to(dtype)).eval()

    model, x = build(), torch.randint(0, 20, (6, 4))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = winnow.compress(model, include=(name,) if name else (), **PICK)
    out = result.save(tmp_path / "out")
    want, here = run(result.model, x), tensors_of(result.model)
    for factory in (build, lambda: Net().eval().to(dtype)):  # tied by the code that builds it, or not
        loaded = winnow.load(out, factory=factory)
        assert torch.equal(run(loaded, x), want)
        assert all(torch.equal(t, here[n]) and t.dtype == dtype for n, t in tensors_of(loaded).items())
        packed = run(winnow.load(out, factory=factory, packed=True), x)
        assert torch.allclose(packed, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    group = SHARED[tie]
    if group and tie is not small:
        zeros = {n: int((here[n] == 0).sum()) for n in group}
        assert all(zeros.values()) if name else not any(zeros.values()), zeros
        if name and tie in ONE_TENSOR:
            assert len(set(zeros.values())) == 1 and sum(x.name in group for x in result.layers) == 1
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    if tie in ONE_TENSOR:
        stored = [key for file in out.glob("*.safetensors") for key in load_file(file)]
        assert sum(any(key.startswith(n) for n in group) for key in stored if "bias" not in key) <= 2  # mask and values


@pytest.mark.parametrize(("tie", "names"), [(t, n) for t, n in SHARED.items() if n and t is not small])
def test_exclude_by_any_name_means_the_tensor(tie, names):
    for kept in names:
        scope = find_scope(Net(tie), include=names[:1], exclude=(kept,))
        assert not set(names) & scope.prunables.keys()


def test_views_of_one_memory_named_twice():
    assert set(find_scope(Net(transposed), include=("a.weight", "b.weight")).prunables) == {
        "a.weight",
        "c.weight",
        "d.weight",
    }
    with pytest.raises(InputError, match="share some of their memory"):
        find_scope(Net(part), include=("a.weight", "d.weight"))
    assert {"a.weight", "b.weight"} <= set(find_scope(Net(apart)).prunables)


def test_ties_survive_copies_and_types():
    import copy

    for tie in (by_data, transposed, part):
        model = Net(tie)
        twin = share_as(model, copy.deepcopy(model).double())
        with torch.no_grad():
            twin.a.weight.zero_()
        changed = {n for n, t in tensors_of(twin).items() if not torch.equal(t.float(), tensors_of(model)[n])}
        assert changed == set(SHARED[tie]) and not model.a.weight.eq(0).all()


def test_a_factory_that_ties_what_differs_is_refused(tmp_path):
    out = winnow.compress(Net(), **PICK).save(tmp_path / "out")
    for packed in (False, True):
        with pytest.raises(FormatError, match=r"a.weight and b.weight differ there and are one tensor"):
            winnow.load(out, factory=lambda: Net(two), packed=packed)
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    from winnow.formats.state_dict import load_state

    with pytest.raises(InputError, match=r"a.weight and b.weight are one tensor in the model and differ"):
        load_state(Net(two), tmp_path / "w.safetensors")


def llama(tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def hand_tied():
    model = llama(False)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def hand_parted():
    model = llama(True)
    model.lm_head.weight = nn.Parameter(torch.randn(256, 32) * 0.02)
    return model


def blocks_tied():
    model = llama(True)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    return model


HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def check_loads(folder, model, ids):
    """from_pretrained, load and packed load of a folder are ``model``."""
    from transformers import AutoModel, AutoModelForCausalLM

    want = run(model, ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    here = {n: t.detach() for n, t in tensors_of(model).items()}
    for found in (loaded, winnow.load(folder)):
        assert torch.equal(run(found, ids).logits, want)
        assert all(torch.equal(t, here[n]) for n, t in tensors_of(found).items())
    assert (run(winnow.load(folder, packed=True), ids).logits - want).abs().max() < 1e-4
    base = AutoModel.from_pretrained(folder, dtype="auto")
    assert torch.equal(base.embed_tokens.weight, here[EMBED])
    return loaded


@pytest.mark.hf
@pytest.mark.parametrize("include", [(), (HEAD,), pytest.param((EMBED, HEAD), marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("make", [lambda: llama(True), hand_tied, hand_parted, blocks_tied], ids=["tied", "hand", "parted", "blocks"])  # fmt: skip
def test_transformers_in_memory(tmp_path, make, include):
    model, ids = make(), torch.randint(0, 256, (2, 8))
    result = winnow.compress(model, include=include, **PICK)
    out = result.save(tmp_path / "out")
    loaded = check_loads(out, result.model, ids)
    for name in include:
        assert (loaded.get_parameter(name) == 0).float().mean() == pytest.approx(0.5, abs=0.2)
    if make is not hand_tied:  # which from_pretrained would not tie again, so it is there twice
        model.save_pretrained(tmp_path / "dense", max_shard_size="1GB") if make is not blocks_tied else None
        if (tmp_path / "dense").exists():
            assert os.path.getsize(out / "model.winnow.safetensors") < os.path.getsize(
                tmp_path / "dense" / "model.safetensors"
            )


def both_stored(state):
    return {**state, HEAD: state[EMBED].clone()}


def head_stored(state):
    return {HEAD if n == EMBED else n: t for n, t in state.items()}


def other_head(state):
    return {**state, HEAD: torch.randn_like(state[EMBED]) * 0.02}


@pytest.mark.hf
@pytest.mark.parametrize("ram", [None, "20GB"], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "include", [(), (HEAD,), pytest.param((EMBED,), marks=pytest.mark.slow)], ids=["none", "head", "embedding"]
)
@pytest.mark.parametrize("stored", [dict, both_stored, head_stored, other_head], ids=lambda f: f.__name__)
def test_transformers_folders(tmp_path, stored, include, ram):
    """A configuration that says tied, over weights that are stored once, twice, under the other name, or differ."""
    from transformers import AutoModelForCausalLM

    llama(True).save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    save_file(stored(load_file(file)), file, metadata={"format": "pt"})
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").state_dict()
    ids = torch.randint(0, 256, (2, 8))
    # Several candidates share the streamed head and embedding: each has its own zeros.
    result = winnow.compress(
        tmp_path / "dense", {"input_ids": torch.randint(0, 256, (8, 8))}, include=include, ram=ram, out=tmp_path / "out",
        **{**PICK, "sparsity": "0.7,0.5"},
    )  # fmt: skip
    folders = sorted(p.parent for p in (tmp_path / "out").glob("*/config.json"))
    assert len(folders) == 2
    for folder in folders:
        loaded = check_loads(folder, winnow.load(folder), ids)
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor[tensor != 0], want[name][tensor != 0])
        assert os.path.getsize(folder / "model.winnow.safetensors") < file.stat().st_size
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is (stored is not other_head)
        for name in include:
            assert (loaded.get_parameter(name) == 0).any()
    if ram is None:
        assert torch.equal(run(result.model, ids).logits, run(winnow.load(folders[1]), ids).logits) or torch.equal(
            run(result.model, ids).logits, run(winnow.load(folders[0]), ids).logits
        )


@pytest.mark.hf
def test_an_artifact_compressed_again_stays_tied(tmp_path):
    llama(True).save_pretrained(tmp_path / "dense")
    winnow.compress(tmp_path / "dense", out=tmp_path / "once", include=(HEAD,), **PICK)
    winnow.compress(tmp_path / "once", out=tmp_path / "twice", include=(EMBED,), **{**PICK, "sparsity": 0.7})
    sizes = [os.path.getsize(next((tmp_path / n).glob("*.safetensors"))) for n in ("dense", "once", "twice")]
    assert sizes == sorted(sizes, reverse=True)
    check_loads(tmp_path / "twice", winnow.load(tmp_path / "twice"), torch.randint(0, 256, (2, 8)))
