"""Fresh heads, CLIP's image tower, and the model each kind of data is trained on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from small import WORDS
from ticket_inputs import bert, clip, mlp, rows, save_bert, save_images, sentences, tokenizer, vit
from winnow.errors import InputError
from winnow.models.source import open_model
from winnow.tickets import clip_image_classifier, training_from, with_head
from winnow.train.task.check import check_training

hf = pytest.mark.hf


# -- heads


@hf
def test_a_fresh_head_stands_on_the_encoder_that_was_given(tmp_path):
    pytest.importorskip("transformers")
    folder, encoder = save_bert(tmp_path / "bert"), bert()
    model = with_head(folder, 3, seed=5)
    assert type(model).__name__ == "BertForSequenceClassification" and model.classifier.weight.shape == (3, 16)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], tensor), name
    batch = tokenizer()("the film was good", return_tensors="pt")
    by_hand = encoder(**batch).pooler_output @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(**batch).logits, by_hand)


@hf
def test_a_head_is_its_seed_and_nothing_else(tmp_path):
    pytest.importorskip("transformers")
    folder = save_bert(tmp_path / "bert")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = with_head(folder, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other, memory = with_head(folder, 2, seed=5), with_head(folder, 2, seed=6), with_head(bert(), 2, seed=5)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    for name, tensor in bert().state_dict().items():
        assert torch.equal(memory.bert.state_dict()[name], tensor), name
    assert one.classifier.weight.any() and memory.classifier.weight.any()


@hf
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "vit"])
def test_heads_are_trained_and_never_pruned(family):
    transformers = pytest.importorskip("transformers")
    small = dict(vocab_size=31, max_position_embeddings=24)
    torch.manual_seed(0)
    model = {
        "bert": bert,
        "roberta": lambda: transformers.RobertaModel(
            transformers.RobertaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, **small)
        ),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **small)
        ),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=31, n_positions=24, pad_token_id=0)
        ),
        "vit": lambda: vit("ViTModel"),
    }[family]()  # fmt: skip
    found = with_head(model, 4)
    from winnow.masks.scope import find_scope

    scope = find_scope(found)
    prefix = found.base_model_prefix + "."
    assert all(name.startswith(prefix) and p.block for name, p in scope.prunables.items())
    assert scope.numel == {"bert": 3584, "roberta": 3584, "distilbert": 3584, "gpt2": 6144, "vit": 3584}[family]
    assert all(p.requires_grad for p in found.parameters())
    head = [n for n, _ in found.named_parameters() if not n.startswith(prefix)]
    assert head and not set(head) & set(scope.prunables)


@hf
def test_what_cannot_have_a_head_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="no transformers model"):
        with_head(mlp(), 3)
    with pytest.raises(InputError, match="one output"):
        with_head(bert(), 1)
    with pytest.raises(InputError, match="2 names for 3"):
        with_head(bert(), 3, names=("a", "b"))
    from safetensors.torch import load_file, save_file

    folder = save_bert(tmp_path / "torn")
    state = load_file(folder / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 tensors of the encoder"):
        with_head(folder, 3)


@hf
def test_encoders_without_a_head_get_one_and_heads_that_serve_stay(tmp_path):
    pytest.importorskip("transformers")
    data = sentences(40, names=True)
    fresh = training_from(save_bert(tmp_path / "bert"), data, seed=3)
    assert type(fresh.model).__name__ == "BertForSequenceClassification" and "fresh head" in " ".join(fresh.notes)
    assert fresh.model.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(fresh.model.classifier.weight, with_head(tmp_path / "bert", 2, 3).classifier.weight)
    check_training(fresh)

    ready = bert("BertForSequenceClassification")  # two outputs called LABEL_0 and LABEL_1
    assert training_from(ready, data, processor=tokenizer()).model is ready
    three = [{**row, "label": i % 3} for i, row in enumerate(sentences(40))]
    wider = training_from(ready, three, processor=tokenizer())
    assert wider.model.config.num_labels == 3 and "2 outputs" in " ".join(wider.notes)
    assert torch.equal(wider.model.bert.embeddings.word_embeddings.weight, ready.bert.embeddings.word_embeddings.weight)
    other = bert("BertForSequenceClassification", label2id={"cat": 0, "dog": 1}, id2label={0: "cat", 1: "dog"})
    moved = training_from(other, data, processor=tokenizer())
    assert moved.model is not other and "other ones" in " ".join(moved.notes)
    assert training_from(bert("BertForMaskedLM"), data, processor=tokenizer()).model.config.num_labels == 2


@hf
def test_outputs_without_names_get_those_of_the_data(tmp_path):
    pytest.importorskip("transformers")
    data = sentences(40, names=True)
    folder = save_bert(tmp_path / "three", "BertForSequenceClassification", num_labels=3)
    found = training_from(folder, data)
    assert found.model.config.id2label == {0: "negative", 1: "positive", 2: "LABEL_2"}
    assert found.model.config.label2id == {"negative": 0, "positive": 1, "LABEL_2": 2}
    note = next(n for n in found.notes if "stand for negative, positive" in n)
    assert "other outputs, up to 2" in note and found.model.classifier.out_features == 3
    given = open_model(folder).load()
    assert torch.equal(found.model.classifier.weight, given.classifier.weight)  # the head is its own
    found.model.save_pretrained(tmp_path / "named")
    tokenizer().save_pretrained(tmp_path / "named")
    again = training_from(tmp_path / "named", data)
    assert not any("stand for" in n or "fresh head" in n for n in again.notes)
    inside = training_from(given, data, processor=tokenizer())  # its owner's configuration is left alone
    assert inside.model is given and given.config.id2label[0] == "LABEL_0"
    assert any("stand for negative, positive" in n and "config.id2label" in n for n in inside.notes)


@hf
@pytest.mark.parametrize("padding", ["</s>", None])
def test_a_decoder_is_a_classifier_only_when_asked(tmp_path, padding):
    from transformers import AutoTokenizer, LlamaForCausalLM

    from small import save_llama

    folder = save_llama(tmp_path / "llama", layers=2)
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = padding
    data = [{"text": f"the {w} sat on the {v}", "label": i % 2} for i, (w, v) in enumerate(zip(WORDS, WORDS[3:]))]
    language = training_from(folder, data, task="none", length=4)
    assert "labels are not used" in " ".join(language.notes)
    model = LlamaForCausalLM.from_pretrained(folder)
    training = training_from(model, data, task="classification", processor=words, batch=4)
    assert type(training.model).__name__ == "LlamaForSequenceClassification" and training.lr == 2e-5
    batch = next(iter(training.examples.all()))[1]
    assert batch["attention_mask"].bool().all() or len(batch["labels"]) == 4
    logits = training.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row in range(4):  # each text alone: padding does not reach the head
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
        torch.testing.assert_close(training.model(input_ids=ids).logits[0], logits[row], atol=1e-5, rtol=1e-4)
    check_training(training)


@hf
def test_pairs_with_scores_get_a_head_with_one_output(tmp_path):
    pytest.importorskip("transformers")
    texts = [row["text"] for row in sentences(60)]
    pairs = [
        {"sentence1": a, "sentence2": b, "score": s} for a, b, s in zip(texts[:30], texts[30:], torch.rand(30).tolist())
    ]
    training = training_from(save_bert(tmp_path / "bert"), pairs, batch=8)
    assert training.model.config.num_labels == 1
    batch = next(iter(training.examples.all()))[1]
    assert set(batch["token_type_ids"].flatten().tolist()) == {0, 1}  # both texts go through together
    torch.testing.assert_close(training.loss(training.model, batch), training.model(**batch).loss)
    assert training.evaluate(training.model).metric == "spearman"


# -- images


@hf
def test_images_are_prepared_when_drawn_and_labels_follow(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = save_images(tmp_path / "images")
    model = vit()
    model.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    training = training_from(tmp_path / "vit", folder, batch=4, task="none")
    assert (training.lr, training.kind) == (5e-5, "transformer") and training.examples.count == 16
    from PIL import Image

    batch = training.examples.take(torch.tensor([11, 2]))
    files = sorted(folder.rglob("*.png"))
    theirs = transformers.ViTImageProcessor.from_pretrained(tmp_path / "vit")(
        [Image.open(files[11]), Image.open(files[2])], return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], theirs, atol=1e-5, rtol=0)
    assert batch["labels"].tolist() == [1, 0]
    torch.testing.assert_close(training.loss(training.model, batch), training.model(**batch).loss)
    check_training(training)
    bare = training_from(vit("ViTModel"), folder, batch=4)
    assert type(bare.model).__name__ == "ViTForImageClassification" and bare.model.config.id2label[1] == "dog"


def test_images_for_a_plain_network_are_its_first_argument():
    from small import convnet

    pixels = torch.randint(0, 255, (40, 8, 8), dtype=torch.uint8)
    training = training_from(convnet(), (pixels, torch.arange(40) % 3), batch=8)
    inputs, labels = training.examples.take(torch.tensor([1, 5]))
    assert inputs.shape == (2, 1, 8, 8) and float(inputs.max()) <= 1 and labels.dtype == torch.int64
    assert (training.lr, training.weight_decay, training.kind) == (1e-3, 0.01, "other")
    check_training(training)


# -- CLIP


@hf
def test_with_one_template_the_logits_are_clips_own():
    pytest.importorskip("transformers")
    model, words = clip(), tokenizer()
    names = ["cat", "dog", "film"]
    classifier = clip_image_classifier(model, words, names)
    pixels = torch.randn(5, 3, 8, 8)
    texts = words([f"a photo of a {n}." for n in names], return_tensors="pt", padding=True)
    texts.pop("token_type_ids", None)
    theirs = model(pixel_values=pixels, **texts).logits_per_image
    torch.testing.assert_close(classifier(pixels), theirs)
    assert float(theirs.detach().std()) > 0.1  # the comparison could fail


@hf
def test_templates_are_averaged_as_unit_vectors_and_normalized_again():
    pytest.importorskip("transformers")
    model, words = clip(), tokenizer()
    templates = ("a photo of a {}.", "the {} film", "very sad {}")
    classifier = clip_image_classifier(model, words, ["cat", "dog"], templates)
    for row, name in zip(classifier.head, ["cat", "dog"]):
        vectors = []
        for template in templates:
            ids = words(template.format(name), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                text = model.text_projection(model.text_model(ids).pooler_output)[0].double()
            vectors.append(text / text.norm())
        mean = torch.stack(vectors).mean(0)
        torch.testing.assert_close(
            row.double(), mean / mean.norm() * model.logit_scale.exp().double(), atol=1e-5, rtol=1e-5
        )
    tokens = [words([t.format(n) for t in templates], return_tensors="pt", padding=True) for n in ("cat", "dog")]
    tokens = [{"input_ids": t["input_ids"], "attention_mask": t["attention_mask"]} for t in tokens]
    torch.testing.assert_close(clip_image_classifier(model, tokens, ["cat", "dog"]).head, classifier.head)


@hf
def test_only_the_matrices_of_the_image_blocks_are_pruned_and_the_head_is_frozen():
    pytest.importorskip("transformers")
    model = clip()
    before = copy.deepcopy(model.state_dict())
    classifier = clip_image_classifier(model, tokenizer(), ["cat", "dog"])
    training = training_from(classifier, (torch.randn(12, 3, 8, 8), torch.arange(12) % 2), task="none", batch=4)
    scope = check_training(training)
    kinds = ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]
    layers = [n.split("layers.")[1].split(".") for n in scope.prunables]
    assert sorted((int(p[0]), p[-2]) for p in layers) == sorted((i, k) for i in range(3) for k in kinds)
    assert scope.numel == 3 * (4 * 16 * 16 + 2 * 16 * 24)
    assert all(n.startswith("vision_model.") for n in scope.prunables)
    trained = {n for n, p in classifier.named_parameters() if p.requires_grad}
    assert "visual_projection.weight" in trained and not any("head" in n or "text" in n for n in trained)
    from winnow.train.task.run import Run

    run = Run(training)
    run.advance_to(2)
    assert torch.equal(run.model.head, classifier.head)
    assert not torch.equal(run.model.visual_projection.weight, classifier.visual_projection.weight)
    for name, tensor in model.state_dict().items():  # the model that was given is untouched
        assert torch.equal(tensor, before[name]), name


@hf
def test_a_clip_folder_and_a_folder_of_images_become_the_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = save_images(tmp_path / "images")
    clip().save_pretrained(tmp_path / "clip")
    tokenizer().save_pretrained(tmp_path / "clip")
    size = {"height": 8, "width": 8}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "clip")
    training = training_from(tmp_path / "clip", folder, batch=4)
    assert (training.lr, training.weight_decay, training.kind) == (1e-5, 0.1, "clip")
    expected = clip_image_classifier(clip(), tokenizer(), ["cat", "dog"])
    torch.testing.assert_close(training.model.head, expected.head)
    assert training.evaluate(training.model).metric == "accuracy"
    check_training(training)


@hf
def test_clip_needs_a_clip_model_names_and_templates():
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="CLIPModel"):
        clip_image_classifier(mlp(), tokenizer(), ["cat", "dog"])
    with pytest.raises(InputError, match="two classes"):
        clip_image_classifier(clip(), tokenizer(), ["cat"])
    with pytest.raises(InputError, match="two classes"):
        clip_image_classifier(clip(), tokenizer(), ["cat", "cat"])
    for templates in ((), ("a photo",), "a photo of a {}."):
        with pytest.raises(InputError, match="template"):
            clip_image_classifier(clip(), tokenizer(), ["cat", "dog"], templates)
    with pytest.raises(InputError, match="2 batches of tokens"):
        clip_image_classifier(clip(), [torch.ones(1, 4, dtype=torch.int64)], ["cat", "dog"])
    images = torch.randint(0, 255, (12, 8, 8, 3), dtype=torch.uint8)
    with pytest.raises(InputError, match="names no classes"):
        training_from(clip(), (images, torch.arange(12) % 2))


def test_a_plain_model_is_used_as_it_is():
    model = mlp().eval()
    assert training_from(model, rows(40)).model is model
    assert isinstance(model, nn.Module) and all(p.grad is None for p in model.parameters())
