"""Errors a person meets: one sentence each, naming the fix, with the exit code the command line ends with."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class WinnowError(Exception):
    """The work failed (exit code 1). The message is one sentence that names the fix.

    Sentences are written with options as flags (``--batch-size 4``), which is what the command line shows: ``flagged``. As text the
    error names the keyword of the Python function: ``batch_size=4``.
    """

    exit_code = 1

    @property
    def flagged(self) -> str:
        """The sentence with options as flags."""
        return super().__str__()

    def __str__(self) -> str:
        return keywords(self.flagged)


class InputError(WinnowError, ValueError):
    """An argument, a file or a model cannot be used as given (exit code 2).

    ``option`` is the one at fault, by its name in Python, where the error is about one: a recipe names its line.
    """

    exit_code = 2

    def __init__(self, *args: object, option: str | None = None) -> None:
        super().__init__(*args)
        self.option = option


class FormatError(WinnowError):
    """A file or folder that was given is truncated, altered, or of an unknown version (exit code 2)."""

    exit_code = 2


class GateError(WinnowError):
    """A quality gate said no, and nothing was replaced (exit code 3)."""

    exit_code = 3


# What options are called elsewhere (transformers, torch.nn.utils.prune, SparseGPT, llm-compressor): of each line one is ours.
_SAME = (
    "lr learning_rate", "weight_decay wd", "steps max_steps num_steps n_steps iterations num_iterations",
    "epochs num_epochs num_train_epochs n_epochs max_epochs", "batch batch_size train_batch_size per_device_train_batch_size bs",
    "warmup warmup_ratio", "clip max_grad_norm grad_clip clip_grad_norm gradient_clip_val",
    "schedule scheduler lr_scheduler lr_scheduler_type", "precision mixed_precision", "seed random_seed random_state",
    "sparsity sparsity_level sparsity_ratio target_sparsity final_sparsity pruning_ratio prune_ratio amount",
    "structure pattern sparsity_pattern sparsity_type mask_structure prunen_prunem",
    "samples num_samples n_samples nsamples num_calibration_samples calibration_samples",
    "length max_length max_seq_length max_seq_len seq_len seqlen sequence_length", "damp dampening dampening_frac percdamp",
    "group_size groupsize", "values bits wbits weight_bits", "include targets", "exclude ignore ignored_layers skip",
    "data dataset calibration_data train_data train_dataset", "eval eval_data eval_dataset validation val test_data",
    "out output output_dir save_dir save_path", "ram max_memory memory_limit", "allocation layerwise_sparsity sparsity_distribution",
)  # fmt: skip

SWITCHES = ("overwrite", "trust_remote_code", "dry_run")  # flags without a value
# A command to type, in backticks or beginning with a program's name, stays as it is.
_COMMAND = r"`[^`]*`|\b(?:pip|ray|git|winnow [a-z]+) [^`,;:(]*"
# A flag, and a number or a placeholder (DIR) behind it. What a recipe sets with --set is no setting of a method.
_SETTING = r"(?P<before>(?<=, ))?--set(?: (?P<set>\w+(?:\.\w+)*)(?:=(?P<to>[\w+-]*(?:\.\w+)*))?(?![\w=]))?"
_FLAG = r"(?<![\w-])--(?P<no>no-)?(?P<name>[a-z][a-z-]*[a-z])(?: (?P<value>-?\d+(?:\.\d+)?(?:%|[A-Za-z]+)?(?![\w%])|[A-Z]{3,}\b))?"
_SAID = re.compile(f"(?P<command>{_COMMAND})|{_SETTING}|{_FLAG}")


def keywords(sentence: str) -> str:
    """A sentence about flags as one about keywords of Python: "--size 40MB or --no-speed" becomes 'size="40MB" or speed=False'."""
    return _SAID.sub(_keyword, sentence)


def _keyword(found: re.Match[str]) -> str:
    if found["command"] is not None:
        return found[0]
    if found["name"] is None:
        return _setting(found)
    name, value = found["name"].replace("-", "_"), found["value"]
    if found["no"] is not None:
        return f"{name}=False"
    if value is None:
        return f"{name}=True" if name in SWITCHES else name
    return f"{name}={value if value.isalpha() else _literal(value)}"


def _setting(found: re.Match[str]) -> str:
    name, value = found["set"], found["to"]
    if found["before"] is not None or "." in (name or ""):
        return found[0].replace("--set", "sets", 1)
    if name is None:
        return "settings"
    return f'settings "{name}"' if value is None else f'settings={{"{name}": {_literal(value) or "..."}}}'


def _literal(text: str) -> str:
    return text if not text or re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text) else f'"{text}"'


def meant(name: object, known: Iterable[object]) -> str:
    """What a sentence about an unknown name adds where a known one is near, or is the same by another name: " (did you mean
    wanda?)"."""
    from difflib import SequenceMatcher, get_close_matches

    by_text = {str(one).lower().lstrip("-"): str(one) for one in known}
    text = str(name).lower().lstrip("-")
    same = next((line.split() for line in _SAME if text.replace("-", "_") in line.split()), [])
    if ours := [one for one in by_text if one.replace("-", "_") in same]:
        return f" (did you mean {by_text[ours[0]]}?)"
    begun = [one for one in by_text if text and one.startswith(text)]
    near = begun if len(begun) == 1 else get_close_matches(text, list(by_text), 2)
    if len({SequenceMatcher(None, one, text).ratio() for one in near}) < len(near):
        return ""  # int9 is as near to int4 as to int8
    return f" (did you mean {by_text[near[0]]}?)" if near else ""


@contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Turn an OSError while ``path`` is written (or read) into one sentence that names the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WinnowError(f"the disk is full while writing {path}: free space or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WinnowError(f"{path} cannot be {verb} (no permission): choose one that you may use") from error
        raise WinnowError(
            f"{path} cannot be {verb} ({error.strerror or error}): check the path and the disk"
        ) from error
    except WinnowError:
        raise
    except Exception as error:
        # Libraries in other languages say in words what the system told them.
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        with disk_errors(path, verb):
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from error


FULL = (errno.ENOSPC, errno.EDQUOT)


# What is wrong is the path that was given, not the machine.
PATHS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO,
)  # fmt: skip


# Allocators of torch and of C++ raise RuntimeError; safetensors tells a full disk by its own error with the system's words.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory", "out of memory")


_NO_SPACE = ("no space left on device", "disk quota exceeded")


def sentence_of(error: BaseException) -> tuple[str, int] | None:
    """(sentence, exit code) of a failure of memory, disk or path, or of a refusal that it caused; None for everything else."""
    if isinstance(error, WinnowError) and not isinstance(error, InputError):
        return None
    for cause in _chain(error):
        if out_of_memory(cause):
            return "memory ran out: give --ram a limit to stream the model, or lower --batch-size", 1
        words = str(cause).lower()
        if (isinstance(cause, OSError) and cause.errno in FULL) or any(w in words for w in _NO_SPACE):
            place = getattr(cause, "filename", None) or "output folder"
            return f"the disk is full ({place}): free some space and run the same command again", 1
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename if error.filename is not None else "a file"
        if error.errno in PATHS:
            return f"{_short(str(path))} cannot be used ({error.strerror}): check the path and its permissions", 2
        return f"{_short(str(path))} cannot be read or written ({error.strerror}): check the disk", 1
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's, or that of a C++ library."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and (
        getattr(error, "errno", None) == errno.ENOMEM or any(w in str(error).lower() for w in _NO_MEMORY)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the latest first. What a refusal replaced is no cause of it."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if isinstance(at, InputError) and at.__suppress_context__ else at.__context__)


def _short(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:80]}... ({len(path)} characters)"
