"""Decoders whose tokenizer or configuration names no padding: they are measured and pruned as one text at a time would be."""

import numpy as np
import pytest
import torch

import winnow
from small import save_llama, sentences


@pytest.mark.hf
def test_a_classifier_without_a_padding_token(tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = save_llama(tmp_path / "m")
    config = LlamaConfig.from_pretrained(folder, num_labels=2)
    config.pad_token_id = None
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token is None
    texts = sentences(40)  # of different lengths, so that a batch of them is padded
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        answers = [int(model(**tokenizer(t, return_tensors="pt")).logits.argmax()) for t in texts]
    labels = np.array(answers)
    labels[:10] = 1 - labels[:10]
    assert winnow.evaluate(str(folder), (texts, labels), task="classification").value == pytest.approx(75.0)
    result = winnow.compress(
        str(folder), (texts[:20], labels[:20]), eval=(texts[20:], labels[20:]), task="classification", sparsity=0.5,
        method="wanda", samples=16, baselines="none", speed=False,
    )  # fmt: skip
    assert next(c for c in result.report.candidates if c.kind == "dense").quality == pytest.approx(100.0)
