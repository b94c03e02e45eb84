"""A tokenizer of words, small enough to read: what tests need of transformers' protocol."""


class WordTokenizer:
    """One id per distinct word of ``texts``, in order of appearance; 0 pads, 1 ends a text, 2 (if asked for) starts it."""

    pad_token_id = 0
    eos_token_id = 1

    def __init__(self, texts, start=False, model_max_length=10**9, pad=True):
        self.bos_token_id = 2 if start else None
        self.pad_token_id = 0 if pad else None
        self.model_max_length = model_max_length
        words = dict.fromkeys(word for text in texts for word in text.split())
        self.vocabulary = {word: i + 3 for i, word in enumerate(words)}
        self.calls = 0

    def __len__(self):
        return len(self.vocabulary) + 3

    def __call__(self, first, second=None, truncation=False, max_length=None, verbose=True):
        self.calls += 1
        rows = []
        for i, text in enumerate(first):
            ids = [self.vocabulary[word] for word in text.split()]
            if second is not None:
                ids += [1] + [self.vocabulary[word] for word in second[i].split()]
            ids = ([2] if self.bos_token_id is not None else []) + ids
            rows.append(ids[:max_length] if truncation else ids)
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}

    def decode(self, ids):
        names = {i: word for word, i in self.vocabulary.items()}
        return " ".join(names.get(i, "<end>") for i in ids)
