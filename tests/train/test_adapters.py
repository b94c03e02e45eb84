"""LoRA on a sparse model, merged with its zeros; packed layers as targets; what a plain Trainer says."""

from __future__ import annotations

import json
import logging
import re
import warnings

import pytest
import torch
from torch import nn

import winnow
from small import save_llama
from winnow.errors import InputError
from winnow.train import Fixed, SignIn, WinnowCallback, attach, merge

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """The folder of a Llama whose head was pruned too, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    save_llama(folder / "dense")
    winnow.compress(
        folder / "dense", sparsity=0.5, method="magnitude", task="none", include=["lm_head.weight"], out=folder / "out", speed=False,
    )  # fmt: skip
    return folder / "out"


def tuned(model: nn.Module, **settings: object) -> nn.Module:
    """Adapters around a model, filled with numbers as if they had been trained."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    settings = {"target_modules": ["q_proj", "o_proj", "up_proj", "down_proj", "lm_head"], "r": 4, **settings}
    made = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                p.normal_(std=0.1)
    return made


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_merge_keeps_every_zero_and_tells_what_was_lost(sparse, caplog):
    before = weights(winnow.load(sparse))
    made = tuned(winnow.load(sparse))
    factors = {n: p.detach().clone() for n, p in made.named_parameters() if "lora_" in n}
    adapted = [
        n for n in before if n.endswith(("q_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"))
    ]
    with caplog.at_level(logging.INFO, logger="winnow"):
        model = merge(made)
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    lost = whole = zeros = 0.0
    for name, old in before.items():
        new = model.get_parameter(name).detach()
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if name not in [*adapted, "lm_head.weight"]:
            assert torch.equal(new, old)
            continue
        # W + (alpha / r) B A, alpha 8 and r 4: by hand, in float64
        delta = 2.0 * (
            factors[f"{stem}.lora_B.default.weight"].double() @ factors[f"{stem}.lora_A.default.weight"].double()
        )
        gone = old == 0
        assert int(gone.sum()) > 0 and not new[gone].count_nonzero()
        torch.testing.assert_close(new[~gone].double(), (old.double() + delta)[~gone], rtol=1e-4, atol=1e-6)
        lost, whole, zeros = (
            lost + float(delta[gone].square().sum()),
            whole + float(delta.square().sum()),
            zeros + int(gone.sum()),
        )
        assert model.winnow_merged.tensors[name] == pytest.approx(
            float(delta[gone].square().sum() / delta.square().sum()), rel=1e-3
        )
    assert model.winnow_merged.zeros == zeros and model.winnow_merged.lost == pytest.approx(lost / whole, rel=1e-3)
    assert f"{100 * model.winnow_merged.lost:.1f}%" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"modules_to_save": ["gate_proj"]}, {"target_modules": ["embed_tokens", "v_proj"]}],
    ids=["dora", "modules trained whole", "embeddings"],
)
def test_other_adapters(sparse, settings):
    """Whatever peft merges: the same values as peft's where weights stay, zeros elsewhere, nothing but those in dense tensors."""
    made, reference = (tuned(winnow.load(sparse), **settings) for _ in range(2))
    if "modules_to_save" in settings:
        for one in (made, reference):
            with torch.no_grad():
                for name, p in one.named_parameters():
                    if "modules_to_save" in name:
                        p.add_(0.5)
    before, merged = weights(winnow.load(sparse)), weights(reference.merge_and_unload())
    model = merge(made)
    changed = 0
    for name, p in model.named_parameters():
        kept = before[name] != 0 if name in model.winnow_zeros else torch.ones_like(before[name], dtype=torch.bool)
        assert torch.equal(p, torch.where(kept, merged[name], 0.0)), name
        changed += int((p[kept] != before[name][kept]).sum())
    assert changed and model.winnow_merged.lost > 0


def test_given_masks(sparse):
    name = "model.layers.0.mlp.up_proj.weight"
    base = winnow.load(sparse)
    keep = torch.zeros(base.get_parameter(name).shape, dtype=torch.bool)
    keep[:, ::3] = True
    model = merge(tuned(base), {name: keep})
    weight = model.get_parameter(name)
    assert not weight[~keep].count_nonzero() and weight[keep].count_nonzero() == keep.sum()
    assert model.get_parameter("model.layers.1.mlp.up_proj.weight").count_nonzero() == weight.numel()  # of no mask


def test_what_cannot_be_merged_is_one_sentence_and_nothing_has_changed(sparse):
    peft = pytest.importorskip("peft")
    with pytest.raises(InputError, match="is no peft model"):
        merge(winnow.load(sparse))
    prompts = peft.get_peft_model(
        winnow.load(sparse), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(InputError, match="no adapters that merge"):
        merge(prompts)

    broken = tuned(winnow.load(sparse))
    with torch.no_grad():
        broken.base_model.model.model.layers[1].mlp.up_proj.lora_A["default"].weight[0, 0] = float("nan")
    before = {n: p.detach().clone() for n, p in broken.named_parameters()}
    with pytest.raises(InputError, match="NaN"):
        merge(broken)
    with pytest.raises(InputError, match="masks of the base model"):
        merge(tuned(winnow.load(sparse)), {"lm_head.weight": torch.ones(2, 2, dtype=torch.bool)})
    assert all(torch.equal(p.nan_to_num(), before[n].nan_to_num()) for n, p in broken.named_parameters())

    done = tuned(winnow.load(sparse))
    done.merge_adapter()
    with pytest.raises(InputError, match="merged already"):
        merge(done)
    filled = winnow.load(sparse)
    with torch.no_grad():
        filled.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1.0)
    with pytest.raises(InputError, match=r"up_proj.weight has \d+ zeros of the \d+"):
        merge(tuned(filled))


def test_a_model_whose_empty_units_were_cut_away(sparse):
    """The zeros that went with them are not looked for."""
    model = winnow.load(sparse)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight.t()):
                weight[:8] = 0
    small = winnow.shrink(model).model
    assert small.get_parameter("model.layers.0.mlp.up_proj.weight").shape[0] == 40
    merged = merge(tuned(small))
    zeros = sum(int((merged.get_parameter(n) == 0).sum()) for n in small.winnow_zeros)
    assert zeros == sum(small.winnow_zeros.values()) < sum(model.winnow_zeros.values())


def test_the_model_card_names_what_keeps_the_zeros(sparse):
    card = (sparse / "README.md").read_text()
    for name in re.findall(r"winnow\.train\.(\w+)", card):
        assert hasattr(winnow.train, name)
    assert {"merge", "WinnowCallback"} <= set(re.findall(r"winnow\.train\.(\w+)", card))


def test_the_base_model_of_other_verbs_is_named(sparse):
    """Who gives a model with adapters to compress is told of the merge that keeps zeros."""
    with pytest.raises(InputError, match=r"give winnow\.train\.merge\(model\)"):
        winnow.find_scope(tuned(winnow.load(sparse)))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]])
def test_adapters_on_packed_layers(sparse, targets, tmp_path):
    """They train on packed weights, give the same outputs on dense ones, and are merged there."""
    peft = pytest.importorskip("peft")
    made = tuned(winnow.load(sparse, packed=True), target_modules=targets)
    ids = torch.randint(0, 8, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(4):
        loss = made(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(InputError, match=r"load the model with winnow\.load\(DIR\)"):
        merge(made)
    made.save_pretrained(tmp_path)
    dense = peft.PeftModel.from_pretrained(winnow.load(sparse), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(dense(input_ids=ids).logits, made.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    model = merge(dense)
    zeros = {n: int((model.get_parameter(n) == 0).sum()) for n in model.winnow_zeros}
    assert all(zeros[n] >= count for n, count in model.winnow_zeros.items())


def trainer(folder, model, *callbacks, steps: int = 2):
    pytest.importorskip("accelerate")
    ids = torch.randint(0, 8, (8, 8), generator=torch.Generator().manual_seed(0))
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=5e-3, report_to=[], use_cpu=True,
            disable_tqdm=True, save_strategy="no", logging_steps=100, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        callbacks=list(callbacks),
    )  # fmt: skip


def total_zeros(model: nn.Module) -> int:
    return sum(int((model.get_parameter(name) == 0).sum()) for name in model.winnow_zeros)


def said(caught) -> list[str]:
    return [str(w.message) for w in caught if "pruned weights" in str(w.message)]


def test_a_plain_trainer_warns_once_and_is_right(sparse, tmp_path):
    model = winnow.load(sparse)
    zeros = sum(model.winnow_zeros.values())
    assert total_zeros(model) == zeros > 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, model).train()
    assert (
        len(said(caught)) == 1
        and f"{zeros:,}" in said(caught)[0]
        and "winnow.train.WinnowCallback()" in said(caught)[0]
    )
    assert total_zeros(model) < zeros / 10  # it was right


def test_with_masks_or_frozen_weights_nothing_is_said(sparse, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = winnow.load(sparse)
        trainer(tmp_path, model, WinnowCallback()).train()  # the line that the warning names
        assert total_zeros(model) >= sum(model.winnow_zeros.values())
        by_hand = winnow.load(sparse)
        optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
        attached = attach(by_hand, optimizer, Fixed())
        one = trainer(tmp_path, by_hand)
        one.optimizer = optimizer
        one.train()
        attached.detach()
        plain = transformers.AutoModelForCausalLM.from_config(model.config)
        trainer(tmp_path, plain).train()
        trainer(tmp_path, tuned(winnow.load(sparse))).train()
    assert not said(caught)


def test_the_result_of_a_compression_is_warned_of_too(sparse, tmp_path):
    result = winnow.compress(winnow.load(sparse), sparsity=0.6, method="magnitude", task="none", speed=False)
    with pytest.warns(UserWarning, match=f"{sum(x.zeros for x in result.layers):,} pruned weights"):
        trainer(tmp_path, result.model, steps=1).train()


# -- fine-tuning with the mask of a pruned artifact -----------------------------------------------------------------------


def train_llama(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[float]:
    losses = []
    ids = torch.randint(4, 27, (8, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def zeros_by_file(folder) -> dict[str, int]:
    """Pruned weights by tensor, counted in the bytes of the file."""
    raw = (folder / "model.winnow.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    masks = {n.removesuffix(".winnow_mask"): h["data_offsets"] for n, h in header.items() if n.endswith(".winnow_mask")}
    at = 8 + int.from_bytes(raw[:8], "little")
    # Rows are whole bytes here: every bit that is not set is a pruned weight.
    return {name: sum(8 - bin(byte).count("1") for byte in raw[at + a : at + b]) for name, (a, b) in masks.items()}


@pytest.mark.parametrize("given", ["folder", "loaded", "sign-in"])
def test_fine_tuning_under_the_mask_of_a_folder(sparse, given):
    """One line: by the folder on whatever weights, or by the zeros of the model that it gave; the head's mask is among them."""
    expected = zeros_by_file(sparse)
    assert "lm_head.weight" in expected and sum(expected.values()) > 1000
    source = sparse if given == "loaded" else sparse.parent / "dense"
    model = winnow.load(source) if given == "loaded" else transformers.AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    method = {"loaded": Fixed, "folder": lambda: Fixed(sparse), "sign-in": lambda: SignIn(str(sparse), every=2)}[
        given
    ]()
    attached = attach(model, optimizer, method)
    losses = train_llama(model, optimizer)
    assert losses[-1] < losses[0] and attached.zeros == sum(expected.values())
    tuned_ = weights(attached.detach())
    masks = {n: p != 0 for n, p in weights(winnow.load(sparse)).items() if n in expected}
    for name, zeros in expected.items():
        assert int((tuned_[name] == 0).sum()) == zeros and not tuned_[name][~masks[name]].any(), name


def test_lora_trained_merged_and_packed_again(sparse, tmp_path):
    """From the folder to a folder: adapters trained on a sparse base, merged, saved, and packed with exactly the zeros of before."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(sparse)
    made = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4))
    losses = train_llama(made, torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], 2e-2), 6)
    model = merge(made)
    assert losses[-1] < losses[0] and 0 < model.winnow_merged.lost < 1
    before = weights(winnow.load(sparse))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.get_parameter(name), before[name])
    model.save_pretrained(tmp_path / "merged")
    winnow.compress(tmp_path / "merged", method="zeros", include=["lm_head.weight"], task="none", speed=False, out=tmp_path / "packed")  # fmt: skip
    assert zeros_by_file(tmp_path / "packed") == zeros_by_file(sparse)
    again = weights(winnow.load(tmp_path / "packed"))
    assert all(torch.equal(again[n], p) for n, p in weights(model).items())


def test_folders_without_masks(sparse, tmp_path):
    with pytest.raises(InputError, match="holds no masks: give a folder that winnow"):
        Fixed(sparse.parent / "dense")
    with pytest.raises(InputError, match="holds no masks"):
        Fixed(tmp_path / "nowhere")
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match="is not prunable here"):
        attach(other, torch.optim.SGD(other.parameters(), 0.1), Fixed(sparse))
