"""A character LSTM on Tiny Shakespeare: no recurrent model with public weights is at hand.

Embedding of 64, two LSTM layers of 256 (0.86 M weights), a linear output over the 65 characters. Trained on the first
90% of the text, on the windows' characters one step ahead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.models.training import SEED, optimize, shakespeare

WINDOW, BATCH, PASSES = 128, 32, 5.0
LSTM_MINUTES = 3.0


class CharLSTM(torch.nn.Module):
    """int64 [n, length] in, logits [n, length, characters] out; each says what it expects of the next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(characters, 64)
        self.rnn = torch.nn.LSTM(64, 256, num_layers=2, batch_first=True)
        self.out = torch.nn.Linear(256, characters)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


def char_lstm(folder: Path, scale: float) -> dict[str, Any]:
    """Trains and saves it; returns the loss of the held-out tenth in nats a character."""
    from safetensors.torch import save_file

    ids, characters = shakespeare()
    held_out = int(0.9 * len(ids))
    train, test = ids[:held_out], ids[held_out:]
    model = CharLSTM(characters)
    generator = torch.Generator().manual_seed(SEED)
    steps = round(PASSES * scale * held_out / (WINDOW * BATCH))

    def loss(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1).float(), windows[:, 1:].flatten())

    def batch_loss(step: int) -> torch.Tensor:
        starts = torch.randint(held_out - WINDOW - 1, (BATCH,), generator=generator)
        return loss(model, torch.stack([train[s : s + WINDOW + 1] for s in starts.tolist()]))

    optimize(model, [torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)], steps, batch_loss)
    with torch.inference_mode():
        windows = test[: len(test) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
        nats = loss(model, windows).item()
    save_file(model.state_dict(), folder / "char_lstm.safetensors")
    (folder / "characters.json").write_text(json.dumps(characters))
    return {"nats_per_character": nats, "test": "last tenth of Tiny Shakespeare", "steps": steps, "batch": BATCH}
