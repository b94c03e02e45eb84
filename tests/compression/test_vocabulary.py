"""--vocabulary: tokenizer and embeddings cut together; the corpus encodes as before and the model answers as before."""

import json

import pytest
import torch

import winnow
from small import sentences, write_lines
from winnow.data import open_data
from winnow.errors import InputError
from winnow.models.source import open_model

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.hf

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OUTSIDE = "Zebras juggle 77 quinces; ♞ größe?"


def tokenizer_of(kind, texts):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [
        *texts,
        "quick zebras jumble vexing phrases with juggling",
        "0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ ;?!",
    ] * 3
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL)
    elif kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="[UNK]")
    made.train_from_iterator(texts, trainer)
    cls, sep = (made.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def folder_of(path, kind, texts):
    """A tiny model with a tokenizer that was trained on more than ``texts``; padded rows without a token above."""
    import transformers

    tokenizer = tokenizer_of(kind, texts)
    size = dict(
        vocab_size=len(tokenizer) + 3, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    ids = dict(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id
    )
    torch.manual_seed(0)
    if kind == "wordpiece":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**size, **ids))
        torch.nn.init.normal_(model.cls.predictions.bias)  # a row for each token too
    elif kind == "bpe":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **ids, tie_word_embeddings=True))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **ids, tie_word_embeddings=False))
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_texts_of_the_corpus_keep_their_tokens_and_the_model_its_answers(kind, tmp_path):
    from transformers import AutoTokenizer

    from winnow.compression.vocabulary import trim

    texts = sentences(80)
    corpus = write_lines(tmp_path / "corpus.txt", texts[:40])
    source = open_model(folder_of(tmp_path / "model", kind, texts))
    trimmed = trim(source, corpus, column=None)
    before, after = (AutoTokenizer.from_pretrained(s.folder) for s in (source, trimmed.source))
    dense, cut = source.load(), trimmed.source.load()
    table = dense.get_input_embeddings().weight
    assert (
        len(after)
        == trimmed.rows_after
        == cut.get_input_embeddings().weight.shape[0]
        < trimmed.rows_before
        == len(table)
    )
    rows = [before.get_vocab()[token] for token in after.convert_ids_to_tokens(range(len(after)))]
    assert torch.equal(cut.get_input_embeddings().weight, table[rows])
    for text in texts[:40]:
        assert before.tokenize(text) == after.tokenize(text)
        old, new = (made(text, return_tensors="pt").input_ids for made in (before, after))
        with torch.no_grad():
            assert torch.equal(dense.base_model(old)[0], cut.base_model(new)[0])
            torch.testing.assert_close(cut(new).logits, dense(old).logits[..., rows], rtol=0, atol=1e-6)
    assert after(OUTSIDE).input_ids
    if kind == "bpe":  # bytes are all there
        assert after.decode(after(OUTSIDE).input_ids, skip_special_tokens=True) == OUTSIDE
    for name in ("pad_token", "mask_token", "cls_token"):
        token = getattr(before, name)
        assert getattr(after, name) == token and after.convert_ids_to_tokens(getattr(after, f"{name}_id")) == token
    assert after.convert_ids_to_tokens(cut.config.pad_token_id) == "[PAD]"
    assert after.convert_ids_to_tokens(cut.config.eos_token_id) == "[SEP]"


def test_a_word_that_failed_still_fails():
    """WordPiece gives up on "abd" at "##d": without "ab" it would find "a" and "##bd", which another text needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from winnow.compression.cut_tokenizer import cut_tokenizer

    tokens = ["[UNK]", "a", "ab", "##bd", "x", "y"]
    made = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["abd", "x", "xbd"]
    assert made.encode("abd").tokens == ["[UNK]"] and made.encode("xbd").tokens == ["x", "##bd"]
    cut = cut_tokenizer(json.loads(made.to_str()), texts, set())
    smaller = Tokenizer.from_str(json.dumps(cut.tokenizer))
    assert [smaller.encode(t).tokens for t in texts] == [made.encode(t).tokens for t in texts]
    assert smaller.get_vocab_size() < len(tokens) + 1 and "ab" in smaller.get_vocab()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_compressed_folder_has_the_smaller_vocabulary_everywhere(kind, tmp_path):
    from transformers import AutoTokenizer

    texts = sentences(80)
    model = folder_of(tmp_path / "model", kind, texts)
    corpus = write_lines(tmp_path / "corpus.txt", texts[:60])
    options = dict(
        sparsity=0.5, method="wanda", samples=8, length=16, rest="int8", baselines="none", speed=False, task="none"
    )
    report = winnow.compress(model, corpus, vocabulary=corpus, out=tmp_path / "out", **options).report
    rows = report.model.vocabulary
    assert rows < report.model.vocabulary_before and any("the vocabulary was cut" in note for note in report.remarks)
    assert report.hashes["model"] == open_model(model).sha256()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    made = winnow.load(tmp_path / "out")
    stock = type(made).from_pretrained(winnow.export_dense(tmp_path / "out", tmp_path / "dense"))
    again = AutoTokenizer.from_pretrained(tmp_path / "dense")
    assert len(tokenizer) == len(again) == made.config.vocab_size == stock.config.vocab_size == rows
    ids = tokenizer(texts[0], return_tensors="pt").input_ids
    assert again(texts[0]).input_ids == ids[0].tolist() and not (ids == tokenizer.unk_token_id).any()
    with torch.no_grad():
        assert torch.equal(made(ids).logits, stock.eval()(ids).logits) and made(ids).logits.shape[-1] == rows


def test_what_cannot_be_cut_is_refused_in_a_sentence(tmp_path):
    from families import hf
    from small import classifier, points

    corpus = write_lines(tmp_path / "corpus.txt", sentences(20))
    options = dict(sparsity=0.5, method="magnitude", task="none", baselines="none", speed=False, vocabulary=corpus)
    with pytest.raises(InputError, match="needs a model folder"):
        winnow.compress(classifier(), **options)
    bare = hf(
        "LlamaForCausalLM",
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )()
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="no fast tokenizer"):
        winnow.compress(tmp_path / "bare", **options)
    folder = folder_of(tmp_path / "model", "bpe", sentences(20))
    with pytest.raises(InputError, match="needs texts"):
        winnow.compress(folder, **{**options, "vocabulary": points()})
    assert not (tmp_path / "out").exists()


@pytest.mark.shared_data
def test_minilm_on_its_own_sentences(shared_data, tmp_path):
    from winnow.compression.vocabulary import trim

    source = open_model(shared_data / "minilm-l6")
    trimmed = trim(source, shared_data / "sst2/validation.tsv.gz", column="sentence")
    dense, cut = source.load(), trimmed.source.load()
    texts = open_data(shared_data / "sst2/validation.tsv.gz", column="sentence").inputs[:8]
    before, after = source.tokenizer(), trimmed.source.tokenizer()
    assert trimmed.rows_before == 30522 and 4_000 < trimmed.rows_after < 8_000
    for text in texts:
        assert before.tokenize(text) == after.tokenize(text)
        with torch.no_grad():
            old, new = (model(**made(text, return_tensors="pt"))[0] for model, made in ((dense, before), (cut, after)))
        assert torch.equal(old, new)
