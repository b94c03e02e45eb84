"""Export to ordinary dense files that load without winnow."""

from __future__ import annotations

from pathlib import Path

from winnow.disk.files import copy_file, write_text
from winnow.disk.links import refuse_links
from winnow.disk.made import describe
from winnow.disk.ownership import MARK, sha256
from winnow.formats.artifact import as_json
from winnow.formats.output import OutputFolder
from winnow.formats.reader import check_listed, read_artifact
from winnow.formats.shards import SHARD_BYTES, ShardWriter


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
    if artifact.is_transformers:
        refuse_links(artifact.other_files, artifact.folder)
    check_listed(artifact.folder, [path.name for path in artifact.other_files], artifact.manifest)
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
            for path in artifact.other_files:
                if path.name != MARK:
                    copy_file(path, output.path / path.name)
        return output.publish()
    except BaseException:
        output.discard()
        raise
