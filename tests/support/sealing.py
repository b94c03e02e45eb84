"""Folders that winnow wrote, changed by hand with every checksum made right again."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path


def b2(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Folder:
    """A copy of a sound folder, to be changed; :meth:`seal` makes every checksum right again."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.path, self.draw = folder, draw
        self.shards = sorted(folder.glob("*.safetensors"))

    def shard(self) -> Path:
        return self.draw.choice(self.shards)

    def any_file(self) -> Path:
        return self.draw.choice(sorted(p for p in self.path.iterdir() if p.is_file()))

    def opened(self, shard: Path) -> tuple[dict, dict, bytearray]:
        """(header, what winnow says in it, values)."""
        raw = shard.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        return header, json.loads(header["__metadata__"]["winnow"]), bytearray(raw[end:])

    def seal(self, shard: Path, header: dict, about: dict, values: bytes, small: bool = True) -> None:
        sums = about.get("checksums")
        together = hashlib.blake2b(digest_size=16)
        entries = [(k, e) for k, e in header.items() if k != "__metadata__" and isinstance(e, dict)]
        try:
            for key, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                if key in sums:
                    sums[key][:] = [entry["dtype"], entry["shape"], b2(values[begin:end])]
                else:
                    what = json.dumps([key, entry["dtype"], entry["shape"]], separators=(",", ":")).encode()
                    together.update(len(what).to_bytes(8, "little") + what + values[begin:end])
            if small and "small" in about:
                about["small"] = together.hexdigest()
        except (TypeError, KeyError, ValueError, AttributeError):
            pass  # what is too broken to be resealed stays as it is
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        header["__metadata__"] = {"format": "pt", "winnow": text, "winnow_blake2b": b2(text.encode())}
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        shard.write_bytes(len(raw).to_bytes(8, "little") + raw + values)
        self.sign(**{shard.name: b2(raw)})
        self.relist()

    def sign(self, **headers: str) -> None:
        """The checksums of headers made right again: in the index, where there is one, and so in config.json."""
        config = json.loads((self.path / "config.json").read_text())
        described = config.get("winnow") or config["quantization_config"]
        index = self.path / "model.winnow.safetensors.index.json"
        if index.is_file():
            about = json.loads(index.read_text())
            about["metadata"]["winnow"]["files"].update(headers)
            index.write_text(json.dumps(about))
            described["checksum"] = b2(index.read_bytes())
        elif headers:
            (described["checksum"],) = headers.values()
        (self.path / "config.json").write_text(json.dumps(config))

    def relist(self) -> None:
        """The manifest made right again, or gone."""
        path = self.path / "manifest.json"
        if self.draw.random() < 0.5:
            return path.unlink(missing_ok=True)
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            manifest["files"][name] = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest))
