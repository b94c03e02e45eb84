"""Every form of data, every way it can be unusable, splits without overlap, and calibration batches."""

import csv
import gzip
import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.data import Records, calibration_batches, lm_segments, open_data, overlap, passages, split_disjoint
from winnow.data.images import ImageTransform, image_transform
from winnow.data.records import evenly_spaced
from winnow.errors import InputError
from words import WordTokenizer

ROWS = [("a fine film", 1), ("a dull, dull film", 0), ("so so", 2)]


def write(path, data):
    data = data if isinstance(data, bytes) else data.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return str(path)


def table(path, header=True, delimiter=","):
    lines = [("sentence", "label")] * header + [(text, str(label)) for text, label in ROWS]
    if delimiter == "\t":
        return write(path, "".join("\t".join(line) + "\n" for line in lines))
    return write(path, "".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in lines))


# --- files


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_form(tmp_path, form, gz):
    path = tmp_path / f"a.{form}{gz}"
    if form == "jsonl":
        write(path, "".join(json.dumps({"sentence": t, "label": n}) + "\n\n" for t, n in ROWS))
    elif form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        columns = {"sentence": [t for t, _ in ROWS], "label": [n for _, n in ROWS]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "plain")
        write(path, (tmp_path / "plain").read_bytes())
    else:
        table(path, delimiter="\t" if form == "tsv" else ",")
    for named in ({}, {"column": "sentence"}, {"column": "sentence", "label": "label"}):
        records = open_data(str(path), **named)
        assert records.kind == "text" and records.inputs == [t for t, _ in ROWS]
        assert records.labels.tolist() == [1, 0, 2] and records.labels.dtype == np.int64
        assert records.name == str(path) and len(records) == 3


def test_a_csv_without_header_by_numbers(tmp_path):
    text = "A girl sings.,A girl is singing.,4.2\nA man, old,x,0\n"
    path = write(tmp_path / "sts.csv.gz", text.replace("A man, old", '"A man, old"').replace(",x,0", ",A boy,0.0"))
    records = open_data(path, column="0,1", label="2")
    assert records.kind == "pairs"
    assert records.inputs == [("A girl sings.", "A girl is singing."), ("A man, old", "A boy")]
    assert records.labels.tolist() == [4.2, 0.0] and records.labels.dtype == np.float64


def test_a_header_is_seen_beside_numbers(tmp_path):
    path = table(tmp_path / "a.csv")
    assert open_data(path, column="0", label="1").inputs == [t for t, _ in ROWS]
    assert open_data(path, column="sentence", label="1").labels.tolist() == [1, 0, 2]
    named_by_numbers = write(tmp_path / "c.csv", "0,1\nx,5\ny,6\n")
    assert open_data(named_by_numbers, column="0", label="1").labels.tolist() == [5, 6]
    bare = table(tmp_path / "b.csv", header=False)
    assert open_data(bare, column="0", label="1").inputs == [t for t, _ in ROWS]


def test_labels_that_are_words(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tclass\nx\tham\ny\tspam\nz\tham\n")
    records = open_data(path)
    assert records.label_names == ("ham", "spam") and records.labels.tolist() == [0, 1, 0]


def test_quotes_in_tsv_are_plain(tmp_path):
    path = write(tmp_path / "a.tsv", 'sentence\tlabel\n" an open quote\t1\nplain\t0\n')
    assert open_data(path).inputs == ['" an open quote', "plain"]


def test_running_text_comes_back_exactly(tmp_path):
    text = " \n = Title = \n \n First line .\nSecond line .\n\n\nThird .\n"
    records = open_data(write(tmp_path / "a.txt", text))
    assert records.running and len(records) == 4
    assert "\n".join(records.inputs) == text


def test_documents_end_where_the_file_says(tmp_path):
    text = "One.\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n\n<|endoftext|>\nThree"
    records = open_data(write(tmp_path / "a.txt.gz", text))
    assert records.inputs == ["One.\nStill one.", "Two.", "Three"] and not records.running


def test_npz_keys(tmp_path):
    images = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    floats = np.ones((3, 7))
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=[0, 1, 2, 3], test_images=images[:2], test_labels=[7, 8]
    )
    train, test = open_data(str(tmp_path / "a.npz")), open_data(str(tmp_path / "a.npz"), split="test")
    assert train.kind == "images" and train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [7, 8] and (test.inputs == images[:2]).all()
    np.savez(tmp_path / "b.npz", x=floats, y=[0.5, 1.5, 2.5], other=floats)
    plain = open_data(tmp_path / "b.npz")
    assert (
        plain.kind == "tensors" and plain.inputs[0].dtype == torch.float32 and plain.labels.tolist() == [0.5, 1.5, 2.5]
    )
    with pytest.raises(InputError, match="column one of x, y, other"):
        open_data(tmp_path / "b.npz", column="z")
    chosen = open_data(tmp_path / "b.npz", column="other", label="y")
    assert len(chosen) == 3
    channels_first = np.zeros((5, 3, 8, 9), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", x=channels_first)
    assert open_data(tmp_path / "c.npz").inputs.shape == (5, 8, 9, 3)
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):
        open_data(tmp_path / "d.npz")


def test_image_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for name, colour in (("cat", 10), ("ant", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                image.new("RGB", (4 + i, 5), (colour, i, 0)).save(tmp_path / split / name / f"{i}.png")
    with pytest.raises(InputError, match="the splits test, train"):
        open_data(tmp_path)
    records = open_data(tmp_path, split="test")
    assert records.label_names == ("ant", "cat") and records.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert records.inputs[1].shape == (5, 5, 3) and records.inputs[1][0, 0].tolist() == [200, 1, 0]
    assert open_data(tmp_path / "train", limit=2).labels.tolist() == [0, 1], "evenly spaced, not the first class alone"
    flat = open_data(tmp_path / "train" / "cat")
    assert flat.labels is None and len(flat) == 3
    assert overlap(records, open_data(tmp_path / "train")) == 6, "by content, not by name"
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png is not a readable image"):
        _ = open_data(tmp_path / "train" / "cat").sha256
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        open_data(tmp_path / "empty")


# --- what cannot be used


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "", {}, "is empty"),
        ("a.txt", "\n \n\n", {}, "is empty"),
        ("a.txt", "one line only", {}, "a single record"),
        ("a.csv", "", {}, "is empty"),
        ("a.csv", "text,label\n", {}, "no records"),
        ("a.csv", "text,label\nx,1\n", {}, "a single record"),
        ("a.jsonl", "", {}, "is empty"),
        ("a.txt", b"caf\xe9\nbar\n", {}, r"not UTF-8 text \(byte 3 is 0xe9\).*iconv"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', {}, "line 2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', {}, "line 2 is a list"),
        ("a.csv", "a,b\nx,1\ny\n", {"column": "a"}, "row 3 has 1 columns, the first has 2"),
        ("a.csv", "a,b\nx,1\ny,2\n", {"column": "text"}, "no column 'text': give column one of a, b"),
        ("a.csv", "a,b\nx,1\ny,2\n", {"column": "a", "label": "c"}, "no column 'c': give label one of a, b"),
        ("a.csv", "a,b\nx,1\ny,2\n", {}, "which column is the text is not clear"),
        ("a.csv", "a,b\nx,1\ny,2\n", {"column": "5"}, "no column '5'"),
        ("a.jsonl", '{"t": 1}\n{"t": 2}\n', {"column": "t"}, "column 't' holds a int in record 0"),
        ("a.csv", "text,label\nx,1\ny,\n", {}, "record 1 has an empty label"),
        ("a.csv", "text,label\nx,1\ny,two\nz,3\n", {}, "label 'two' of record 1 is not a number"),
        ("a.csv", "text,label\nx,1\n ,2\n", {"label": "label"}, "column 'text' is empty in record 1"),
        ("a.txt.gz", b"not gzip", {}, "not a whole gzip file"),
        ("a.parquet", b"PAR1 no", {}, "not a whole parquet file"),
        ("a.npz", b"PK no", {}, "not a readable .npz"),
        ("a.docx", b"x", {}, "the form .docx is not known"),
        ("a", b"x", {}, "without a suffix"),
        ("a.txt", "x\ny\n", {"limit": 1}, "limit of 1"),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path, name, content, options, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        open_data(path, **options)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_cut_off_gzip_file(tmp_path):
    whole = gzip.compress(b"some text\n" * 1000)
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="fetch it again"):
        open_data(tmp_path / "a.txt.gz")


def test_a_long_single_text_can_still_be_cut(tmp_path):
    records = open_data(write(tmp_path / "a.txt", "word " * 5000))
    assert len(split_disjoint(records, 0, (0.5, 0.5))) == 2


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nothing", "missing.csv", "a/b/c", "two words"])
def test_missing_paths_are_not_looked_for_on_the_network(spec, monkeypatch):
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: pytest.fail("the network was asked")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(InputError, match="does not exist"):
        open_data(spec)


class Hub:
    """What is used of a datasets.Dataset."""

    def __init__(self, columns, features=None):
        self.columns = columns
        self.column_names = list(columns)
        self.features = features or dict.fromkeys(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return self.columns[key]

    def select(self, rows):
        return Hub({k: [v[i] for i in rows] for k, v in self.columns.items()}, self.features)


def test_hugging_face_names(monkeypatch):
    asked = []
    label = types.SimpleNamespace(names=["bad", "good"])

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "org/gone":
            raise ConnectionError("no route\nto host")
        return Hub({"text": ["x", "y", "z", ""], "label": [1, 0, 1, 0]}, {"text": None, "label": label}).select(
            [0, 1, 2]
        )

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    records = open_data("org/name:config", split="test")
    assert records.inputs == ["x", "y", "z"] and records.label_names == ("bad", "good")
    assert open_data("name", limit=2).inputs == ["x", "y"]
    assert asked == [("org/name", "config", "test"), ("name", None, "train")]
    with pytest.raises(InputError, match="ConnectionError: no route"):
        open_data("org/gone")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'winnow-nn\[data\]'"):
        open_data("org/name")


def test_functions_give_any_form(tmp_path, monkeypatch):
    (tmp_path / "winnow_forms.py").write_text(
        "import torch\ndef texts(): return ['a b', 'c d']\ndef xy(): return torch.ones(4, 3), torch.arange(4)\nN = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_data("winnow_forms:texts").inputs == ["a b", "c d"]
    records = open_data("winnow_forms:xy")
    assert records.kind == "tensors" and records.labels.tolist() == [0, 1, 2, 3] and records.name == "winnow_forms:xy"
    with pytest.raises(InputError, match="nothing cannot be found"):
        open_data("winnow_forms:nothing")
    with pytest.raises(InputError, match="name a function"):
        open_data("winnow_forms:N")


# --- in memory


def test_objects_in_memory():
    assert open_data(["a", "b"]).inputs == ["a", "b"]
    assert open_data([{"q": "a", "n": "b"}, {"q": "c", "n": "d"}], column="q").inputs == ["a", "c"]
    assert open_data([("a", "b"), ("c", "d")]).kind == "pairs"
    labelled = open_data((["a", "b"], [1, 0]))
    assert labelled.kind == "text" and labelled.labels.tolist() == [1, 0]
    assert open_data({"text": ["a", "b"], "label": [0, 1]}).labels.tolist() == [0, 1]
    x, y = torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    pairs = [(x, y), list(zip(x, y)), torch.utils.data.TensorDataset(x, y)]
    pairs.append(torch.utils.data.DataLoader(pairs[-1], batch_size=4))
    for data in pairs:
        records = open_data(data)
        assert torch.equal(records.inputs[0], x) and records.labels.tolist() == y.tolist()
    assert open_data(list(zip(x, [0.5] * 6))).labels.tolist() == [0.5] * 6
    assert open_data(x).labels is None and open_data(x.numpy()).inputs[0].dtype == torch.float32
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert open_data((pixels, torch.zeros(4))).inputs.shape == (4, 8, 8, 3)
    records = open_data(["a", "b"])
    assert open_data(records) is records


def test_ragged_batches_are_padded_under_their_mask():
    batches = [
        {"input_ids": torch.full((2, 3), 7), "attention_mask": torch.ones(2, 3, dtype=torch.long)},
        {"input_ids": torch.full((1, 5), 8), "attention_mask": torch.ones(1, 5, dtype=torch.long)},
    ]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    records = open_data(loader)
    assert records.kind == "tensors" and set(records.inputs) == {"input_ids", "attention_mask"}
    assert records.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0]] * 2 + [[1] * 5]
    with pytest.raises(InputError, match="add an attention_mask"):
        open_data(torch.utils.data.DataLoader([{"x": torch.ones(2, 3)}, {"x": torch.ones(2, 4)}], batch_size=None))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is empty"),
        (42, "cannot be read from a int"),
        ((torch.ones(3, 2), torch.ones(4)), "3 inputs and 4 labels"),
        ((torch.ones(3, 2), torch.ones(3, 2)), "one number per example"),
        (iter(["a", "b"]), "does not say how long it is"),
        (torch.ones(()), "single number"),
        ({"a": ["x", "y"], "b": ["x"]}, "differ in length"),
        ([torch.ones(2), torch.ones(3)], "differ in shape"),
        ([("a", "b"), ("c",)], "record 1 is not a pair"),
    ],
)
def test_unusable_objects(data, message):
    with pytest.raises(InputError, match=message):
        open_data(data)


# --- records, splits, overlap


def test_hashes_follow_content():
    a, b = open_data(["x ", "y"]), open_data(["x", "z"])
    assert a.digests[0] == b.digests[0] != a.digests[1]
    assert a.sha256 != b.sha256 and a.sha256 == open_data(["x", "y"]).sha256
    assert open_data((["x", "y"], [0, 1])).digests == a.digests
    assert open_data((["x", "y"], [0, 1])).sha256 != a.sha256
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert open_data(x).digests != open_data(x.double()).digests
    image = np.zeros((2, 4, 6), dtype=np.uint8)
    assert open_data(image).digests[0] != open_data(image.reshape(2, 6, 4)).digests[0], "the shape counts"


@given(st.integers(1, 500), st.data())
def test_evenly_spaced_indices(n, data):
    count = data.draw(st.integers(1, n))
    index = evenly_spaced(n, count)
    assert len(set(index.tolist())) == count and index[0] == 0 and index[-1] < n and (np.diff(index) > 0).all()
    if count > 1:
        assert np.ptp(np.diff(index)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 25), min_size=6, max_size=120),
    st.integers(0, 2**31),
    st.lists(st.floats(0.05, 1), min_size=2, max_size=4),
)
def test_parts_share_no_content_and_lose_nothing(values, seed, shares):
    texts = [f"text {value}" for value in values]
    labels = np.arange(len(texts))
    fractions = [share / sum(shares) for share in shares]
    records = Records("text", texts, labels)
    if len(set(texts)) < len(fractions):
        with pytest.raises(InputError, match="too few"):
            split_disjoint(records, seed, fractions)
        return
    parts = split_disjoint(records, seed, fractions)
    assert all(len(part) for part in parts)
    assert all(overlap(a, b) == 0 for i, a in enumerate(parts) for b in parts[:i])
    assert sorted(label for part in parts for label in part.labels) == sorted(labels), "shares of 1 use every record"
    assert all((np.diff(part.labels) > 0).all() for part in parts), "parts keep the order"
    assert all(part.inputs[i] == texts[label] for part in parts for i, label in enumerate(part.labels))


def test_a_split_depends_on_content_and_seed_alone():
    texts = [f"text {i}" for i in range(200)]
    labels = np.zeros(200, dtype=int)
    first, _ = split_disjoint(Records("text", texts, labels), 7, (0.3, 0.7))
    turned, _ = split_disjoint(Records("text", texts[::-1], labels), 7, (0.3, 0.7))
    assert set(first.inputs) == set(turned.inputs) and len(first) == 60
    other, _ = split_disjoint(Records("text", texts, labels), 8, (0.3, 0.7))
    assert set(first.inputs) != set(other.inputs)
    small, smaller = split_disjoint(Records("text", texts, labels), 0, sizes=(50, 20))
    assert (len(small), len(smaller)) == (50, 20)


def test_texts_are_shared_out_by_their_length():
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) + f" {i}" for i, n in enumerate(rng.lognormal(6, 1.5, size=300))]
    parts = split_disjoint(open_data(texts), 1, (0.25, 0.25, 0.5))
    total = sum(map(len, texts))
    assert [sum(map(len, part.inputs)) / total for part in parts] == pytest.approx([0.25, 0.25, 0.5], abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either fractions or sizes"),
        ({"fractions": (0.5, 0.5), "sizes": (1, 1)}, "either fractions or sizes"),
        ({"fractions": (0.8, 0.4)}, "sum to at most 1"),
        ({"fractions": (0.5, 0)}, "positive"),
        ({"sizes": (3, 3)}, "6 were requested"),
        ({"sizes": (2, 1)}, "repeats records too often"),
    ],
)
def test_impossible_splits(options, message):
    records = Records("text", ["a", "b", "b", "b"], np.zeros(4)) if options.get("sizes") != (2, 1) else None
    records = records or Records("text", ["a", "a", "a", "b"], np.zeros(4))
    if options.get("sizes") == (2, 1):
        options = {"sizes": (2, 2)}
    with pytest.raises(InputError, match=message):
        split_disjoint(records, 0, **options)


def test_running_text_is_split_in_passages_and_found_again(tmp_path):
    lines = [f"Line {i} of a text that runs on and on for some {i * 7919 % 1000} words." for i in range(400)]
    text = "CHAPTER I.\n\n" + "\n".join(lines) + "\nCHAPTER I.\n"
    records = open_data(write(tmp_path / "a.txt", text))
    parts = split_disjoint(records, 0, (0.4, 0.6))
    assert overlap(*parts) == 0 and sum(len(part) for part in parts) == len(passages(records))
    assert all(len(passage) >= 1000 for part in parts for passage in part.inputs[:-1])
    assert overlap(records, parts[0]) == len(parts[0]), "cut in another way, the text is still found"
    other = open_data(write(tmp_path / "b.txt", "CHAPTER I.\n\n" + "\n".join(line[::-1] for line in lines)))
    assert overlap(records, other) == 0, "a heading that both have is no overlap"
    mixed = open_data(write(tmp_path / "c.txt", "Something else.\n" + "\n".join(lines[100:110]) + "\nThe end.\n"))
    assert 0 < overlap(records, mixed) <= 10


def test_passages_keep_lines_whole():
    lines = ["l" * 300 + str(i) for i in range(30)]
    cut = passages(Records("text", lines, joiner="\n"))
    assert "\n".join(cut.inputs).split("\n") == lines
    assert all(2000 <= len(text) < 2400 for text in cut.inputs[:-1])
    words = passages(Records("text", ["word " * 3000]))
    assert "".join(words.inputs).replace(" ", "") == "word" * 3000


# --- model input

SENTENCES = [f"s{i} " + " ".join(f"w{(i * k) % 37}" for k in range(1, 2 + i % 9)) for i in range(60)]


def tokenizer(**options):
    return WordTokenizer([*SENTENCES, "a photo of cat ant"], **options)


@pytest.mark.parametrize("start", [False, True])
def test_segments_are_the_concatenation(start):
    words = tokenizer(start=start)
    found = lm_segments(SENTENCES, words, 16)
    stream = []
    for text in SENTENCES:
        ids = [words.vocabulary[word] for word in text.split()]
        stream += [2, *ids] if start else [*ids, 1]
    n = len(stream) // 16
    assert found.dtype == torch.int64 and found.tolist() == np.array(stream[: n * 16]).reshape(n, 16).tolist()
    assert torch.equal(lm_segments(SENTENCES, words, 16, limit=3), found[:3])
    joined = lm_segments(SENTENCES, words, 16, joiner=" ")
    ids = [words.vocabulary[word] for text in SENTENCES for word in text.split()]
    assert joined.flatten().tolist() == ([2] * start + ids)[: joined.numel()]


def test_too_short_a_text_says_so():
    with pytest.raises(InputError, match="4 tokens, too few for a segment of 16"):
        lm_segments(["s0 w0 w1"], WordTokenizer(["s0 w0 w1"]), 16)
    with pytest.raises(InputError, match="length of 2"):
        lm_segments(SENTENCES, tokenizer(), 1)
    with pytest.raises(InputError, match="too few for one calibration row of 4096"):
        calibration_batches(open_data(SENTENCES), tokenizer(), model_kind="causal-lm", length=4096)
    with pytest.raises(InputError, match="no tokenizer"):
        calibration_batches(open_data(SENTENCES), None, model_kind="encoder")


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("kind", ["causal-lm", "encoder", "seq2seq"])
def test_calibration_batches_of_text(kind):
    options = {"model_kind": kind, "samples": 20, "length": 8, "batch_size": 6}
    batches = calibration_batches(open_data(SENTENCES), tokenizer(), seed=3, **options)
    assert [len(b["input_ids"]) for b in batches] == [6, 6, 6, 2]
    again = calibration_batches(open_data(SENTENCES), tokenizer(), seed=3, **options)
    assert all(same(a, b) for a, b in zip(batches, again))
    other = calibration_batches(open_data(SENTENCES), tokenizer(), seed=4, **options)
    assert not all(same(a, b) for a, b in zip(batches, other))
    assert all(b["input_ids"].shape == b["attention_mask"].shape and b["input_ids"].shape[1] <= 8 for b in batches)


def test_causal_crops_are_pieces_of_the_text():
    words = tokenizer()
    batches = calibration_batches(
        open_data(SENTENCES), words, model_kind="causal-lm", samples=12, length=10, batch_size=4
    )
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert len({tuple(row) for row in rows}) == 12 and all(batch["attention_mask"].all() for batch in batches)
    documents = {tuple(words.vocabulary[w] for w in text.split()) for text in SENTENCES}
    for row in rows:
        pieces = " ".join(map(str, row)).split(" 1 ")
        for piece in pieces[1:-1]:  # whole documents stand between two end tokens
            assert tuple(map(int, piece.split())) in documents
    few = calibration_batches(open_data(SENTENCES[:9]), words, model_kind="causal-lm", samples=40, length=30)
    assert sum(len(b["input_ids"]) for b in few) == 40, "overlapping crops where the text is short"


def test_encoder_batches_hold_whole_texts_sorted_by_length():
    words = tokenizer()
    batches = calibration_batches(open_data(SENTENCES), words, model_kind="encoder", samples=60, batch_size=7)
    rows = [row[mask.bool()].tolist() for b in batches for row, mask in zip(b["input_ids"], b["attention_mask"])]
    assert sorted(rows) == sorted(words(SENTENCES)["input_ids"])
    assert [len(row) for row in rows] == sorted(len(row) for row in rows)
    assert all((b["input_ids"][b["attention_mask"] == 0] == 0).all() for b in batches)
    scored = Records("pairs", [(SENTENCES[0], SENTENCES[1])] * 2, np.array([0.5, 1.5]))
    assert calibration_batches(scored, words, model_kind="encoder")[0]["input_ids"].shape[0] == 4, "one text at a time"
    classes = Records("pairs", [(SENTENCES[0], SENTENCES[1])] * 2, np.array([0, 1]))
    assert calibration_batches(classes, words, model_kind="encoder")[0]["input_ids"].shape[0] == 2, (
        "both texts together"
    )


def test_decoders_start_where_the_configuration_says():
    words = tokenizer()
    pairs = Records("pairs", [("s0 w0", "s5 w5"), ("s1 w1", "s2 w2")])
    config = types.SimpleNamespace(decoder_start_token_id=2, max_position_embeddings=32)
    (batch,) = calibration_batches(pairs, words, model_kind="seq2seq", config=config)
    v = words.vocabulary
    assert sorted(batch["input_ids"].tolist()) == sorted([[v["s0"], v["w0"]], [v["s1"], v["w1"]]])
    assert sorted(batch["decoder_input_ids"].tolist()) == sorted([[2, v["s5"]], [2, v["s2"]]])
    (single,) = calibration_batches(open_data(["s0 w0 s1 w1", "s2 w2 s5 w5"]), words, model_kind="seq2seq")
    assert sorted(single["decoder_input_ids"].tolist()) == sorted([[0, v["s1"]], [0, v["s5"]]])


IMAGES = np.random.default_rng(0).integers(0, 256, size=(9, 12, 10, 3), dtype=np.uint8)


def test_image_batches():
    records = Records("images", IMAGES, np.arange(9) % 2, ("ant", "cat"))
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    batches = calibration_batches(records, settings, model_kind="vision", samples=9, batch_size=4)
    pixels = torch.cat([b["pixel_values"] for b in batches])
    expected = (IMAGES / 255.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert pixels.dtype == torch.float32 and np.allclose(pixels.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    plain = calibration_batches(
        records, model_kind="tensors", samples=9, batch_size=9, transform=lambda x: x.float() - 7
    )
    assert isinstance(plain[0], tuple) and np.allclose(plain[0][0].numpy(), IMAGES.transpose(0, 3, 1, 2) - 7.0)
    words = tokenizer()
    (both,) = calibration_batches(records, (words, settings), model_kind="clip", samples=9, batch_size=9)
    assert both["pixel_values"].shape == (9, 3, 12, 10)
    assert both["input_ids"][0].tolist() == words(["a photo of a ant"])["input_ids"][0]
    with pytest.raises(InputError, match="but no texts"):
        calibration_batches(Records("images", IMAGES), (words, settings), model_kind="clip")
    with pytest.raises(InputError, match="holds text, but a vision model takes images"):
        calibration_batches(open_data(SENTENCES), None, model_kind="vision")


def test_tensor_batches():
    ids = torch.arange(20).view(10, 2)
    (batch,) = calibration_batches(open_data({"input_ids": ids}), model_kind="encoder", samples=10, batch_size=10)
    assert torch.equal(batch["input_ids"], ids)
    batches = calibration_batches(
        open_data((ids.float(), torch.zeros(10))), model_kind="tensors", samples=6, batch_size=4
    )
    rows = torch.cat([b[0] for b in batches])
    assert [len(b[0]) for b in batches] == [4, 2] and len({tuple(r.tolist()) for r in rows}) == 6
    with pytest.raises(InputError, match="0 samples"):
        calibration_batches(open_data(ids), model_kind="tensors", samples=0)


def test_images_of_different_sizes_need_a_size():
    pytest.importorskip("PIL")
    mixed = [IMAGES[0], IMAGES[1][:7]]
    with pytest.raises(InputError, match="different sizes"):
        ImageTransform()(mixed)
    assert image_transform({"size": {"height": 6, "width": 8}})(mixed).shape == (2, 3, 6, 8)
    assert image_transform({"size": 5})([IMAGES[0][..., 0], IMAGES[1][:7, :, 0]]).shape == (2, 1, 5, 5)
    gray = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    assert image_transform(gray)(IMAGES[..., 0]).shape == (9, 3, 12, 10), "gray images for a model of colours"


def test_image_settings_from_a_folder(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_resize": False, "size": 99, "image_mean": [1], "image_std": [2]})
    )
    found = image_transform(tmp_path)(IMAGES[..., 0])
    assert np.allclose(found[:, 0].numpy(), (IMAGES[..., 0] / 255.0 - 1) / 2, atol=1e-6)
    with pytest.raises(InputError, match="cannot be read as image settings"):
        image_transform(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="cannot prepare images"):
        image_transform(3)


@pytest.mark.hf
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 16, "width": 20}},
        {
            "size": {"shortest_edge": 20},
            "crop_size": {"height": 16, "width": 16},
            "do_center_crop": True,
            "resample": 3,
        },
        {"do_resize": False, "crop_size": {"height": 15, "width": 8}, "do_center_crop": True},
    ],
)
def test_images_come_out_as_from_transformers(settings):
    pytest.importorskip("PIL")
    transformers = pytest.importorskip("transformers")
    name = next((n for n in ("CLIPImageProcessorPil", "CLIPImageProcessor") if hasattr(transformers, n)), None)
    defaults = {"do_center_crop": False, "do_convert_rgb": False, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    processor = getattr(transformers, name)(**{**defaults, **settings})
    theirs = processor(list(IMAGES), return_tensors="np")["pixel_values"]
    ours = image_transform(processor)(IMAGES)
    assert np.allclose(np.asarray(theirs), ours.numpy(), atol=1e-5)
    assert torch.equal(image_transform(processor.to_dict())(IMAGES), ours)


@pytest.mark.shared_data
def test_the_files_that_people_have(shared_data):
    sts = open_data(shared_data / "stsb" / "test.csv.gz", column="0,1", label="2")
    with gzip.open(shared_data / "stsb" / "test.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert sts.inputs == [(a, b) for a, b, _ in rows] and sts.labels.tolist() == [float(score) for _, _, score in rows]
    sst = open_data(shared_data / "sst2" / "validation.tsv.gz")
    assert len(sst) == 872 and set(sst.labels) == {0, 1}
    assert len(open_data(shared_data / "corpus" / "valid.txt.gz")) == 109
    assert len(open_data(shared_data / "tinystories" / "cased_288.jsonl.gz")) == 288
    digits = open_data(shared_data / "mnist" / "mnist.npz", split="test", limit=10)
    assert digits.inputs.shape == (10, 28, 28) and digits.labels[0] == 7
    wiki = open_data(shared_data / "wikitext2-valid-test" / "test.txt.gz")
    assert overlap(open_data(shared_data / "wikitext2-valid-test" / "valid.txt.gz"), wiki) == 0
    parts = split_disjoint(wiki, 0, (0.3, 0.7))
    assert overlap(*parts) == 0 and overlap(wiki, parts[1]) >= 0.99 * len(parts[1])


@pytest.mark.parametrize("keys", [("input_values",), ("signal", "labels"), ("waveform", "y")])
def test_the_only_array_that_can_be_the_inputs_is(keys, tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 9)).astype("f4")
    arrays = {key: np.arange(6) % 2 if i else x for i, key in enumerate(keys)}
    np.savez(tmp_path / "d.npz", **arrays)
    for data in (tmp_path / "d.npz", {k: torch.tensor(v) for k, v in arrays.items()}):
        found = open_data(data)
        assert np.array_equal(np.asarray(found.inputs[0]), x) and (found.labels is None) == (len(keys) == 1)
