"""Export to ordinary dense files that load without winnow."""

from __future__ import annotations

from pathlib import Path

from winnow.disk.files import copy_below, write_text
from winnow.disk.links import refuse_links
from winnow.disk.made import describe
from winnow.disk.ownership import MARK, is_own_card, sha256
from winnow.formats.artifact import as_json
from winnow.formats.companions import companions
from winnow.formats.output import OutputFolder
from winnow.formats.reader import check_listed, read_artifact
from winnow.formats.shards import SHARD_BYTES, ShardWriter
from winnow.report.compression.card import of_export


def export_dense(
    folder: Path | str, out: Path | str, shard_bytes: int = SHARD_BYTES, *, overwrite: bool = False
) -> Path:
    """Write the model of an artifact to ``out`` as ordinary dense safetensors that need no winnow.

    One tensor after the other, so that a model larger than memory can be exported. For transformers the result is a
    normal model folder, tokenizer and other files included; its tensors have the names of the model's state dict.
    An earlier export of the same model in ``out`` is replaced, with ``overwrite`` that of another one too. Raises InputError
    where ``out`` holds anything else, or is in ``folder``, or a file beside the weights is a link that leaves the folder.
    """
    artifact = read_artifact(folder)
    beside = {path.name: path for path in artifact.other_files}
    if artifact.is_transformers:
        refuse_links(beside.values(), artifact.folder)
        beside |= {place: path for place, path in companions(artifact.folder).files.items() if "/" in place}
    check_listed(artifact.folder, beside, artifact.manifest)
    made = describe("export", {"shard_bytes": shard_bytes}, {"weights": sha256(artifact.folder / "config.json")})
    output = OutputFolder(out, "export", [folder], made=made, overwrite=overwrite)
    try:
        shards = ShardWriter(output.path, shard_bytes, described=False)
        for name, tensor in artifact.state_dict():
            shards.add({name: tensor}, {})
        shards.close()
        if artifact.is_transformers:
            packing = ("quantization_config", "transformers_weights")
            config = {key: value for key, value in artifact.config.items() if key not in packing}
            write_text(output.path / "config.json", as_json(config))
            for place, path in beside.items():
                if place == "README.md" and is_own_card(path):
                    write_text(output.path / place, of_export(path.read_text(encoding="utf-8")))
                elif place != MARK:
                    copy_below(path, output.path, place)
        return output.publish()
    except BaseException:
        output.discard()
        raise
