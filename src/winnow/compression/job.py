"""What the user asked for, checked before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from winnow.compression.options import DATA, METHOD, OUTPUT, Inputs, Options, Texts, flag, option, rates_of
from winnow.disk.made import describe
from winnow.errors import InputError
from winnow.naming import name_of

if TYPE_CHECKING:
    from winnow.budget import Budget
    from winnow.masks.structure import Structure

BUDGETS = ("sparsity", "bits_per_weight", "size", "max_drop")


class Job(Inputs, Options):
    """The arguments of :func:`winnow.compress`, checked: whatever is wrong about them alone is an InputError here."""

    verb: ClassVar[str] = "compress"

    model: Any
    data: Any = None
    out: Path | None = None
    eval: Any = option(None, "Evaluation data; by default a part of --data is held out.", DATA)
    vocabulary: Any = option(
        None,
        "Cut tokenizer and embeddings to the tokens that this data uses (read like --data, with --column).",
        METHOD,
    )
    keep: Texts = option((), "Also write this candidate, e.g. int4-g128-gptq; repeatable.", OUTPUT)
    keep_work: bool = option(True, "Keep the other candidates in OUT.work, for `winnow keep`.", OUTPUT)
    overwrite: bool = option(False, "Replace the finished result of another command in --out.", OUTPUT)
    push_to_hub: str | None = option(
        None, "Upload the finished folder to this Hugging Face repository (user/name).", OUTPUT
    )
    seed: int = option(0, "Random seed.", ge=0, lt=1 << 63)
    compare_with: str | Path | None = option(None, "Folder of an earlier run: compare the learned allocations.", OUTPUT)

    def __init__(self, model: Any, data: Any = None, **options: Any) -> None:
        super().__init__(model=model, data=data, **options)

    @model_validator(mode="after")
    def check(self) -> Job:
        """What options say about each other."""
        self.budgets()
        if self.push_to_hub is not None and self.out is None:
            raise InputError("--push-to-hub uploads the output folder: give one with --out DIR.", option="push_to_hub")
        if self.method != "auto":
            self.resolve(self.method)
        if self.table is not None and self.allocation not in (None, "table", "learned"):
            raise InputError(
                f"--table and --allocation {self.allocation} are mutually exclusive: leave out one of them.",
                option="table",
            )
        return self

    @property
    def learns(self) -> bool:
        """Whether the sparsity of each layer is learned on the data."""
        from winnow.compression.methods import METHODS

        named = METHODS.get(self.method, {}).get("allocation") if self.allocation is None else self.allocation
        return named == "learned"

    @property
    def keeps_zeros(self) -> bool:
        """Whether the model's own zeros are the budget."""
        return self.method == "zeros"

    @property
    def pattern(self) -> Structure:
        from winnow.masks.structure import parse_structure

        return parse_structure(self.structure)

    def resolve(self, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parts of a method (score, group, allocation, solver) and its settings, with what was set here in place."""
        from winnow.compression.methods import resolve, settle

        allocation = "table" if self.table is not None and not self.learns else self.allocation
        parts = resolve(method, score=self.score, group=self.group, allocation=allocation, solver=self.solver)
        return parts, settle(method, parts, self.settings, self.seconds(), self.table)

    def described(self, inputs: dict[str, str] | None) -> dict[str, Any]:
        """What the job says of itself in what it writes (:mod:`winnow.disk.made`); ``inputs``: hashes of model and data, None
        before they are known."""
        apart = {
            "model",
            "data",
            "eval",
            "weights",
            "tokenizer",
            "out",
            "compare_with",
            "overwrite",
            "keep_work",
            "push_to_hub",
        }
        fields = type(self).model_fields
        said = {n: v for n in fields.keys() - apart if (v := getattr(self, n)) != fields[n].default}
        if self.sparsity is not None:  # as a text or as a number
            said["sparsity"] = rates_of(self.sparsity)
        said["settings"] = {name: str(value) for name, value in self.settings.items()} or None
        for name in ("tokenizer", "compare_with"):
            if isinstance(given := getattr(self, name), (str, Path)):
                said[name] = name_of(str(given))
        return describe("compress", said, inputs)

    def budgets(self) -> list[Budget]:
        """One budget per requested sparsity, or the single other budget; none for ``max_drop`` and ``method="zeros"``.

        Raises:
            InputError: none or several kinds of budget, or one that the structure does not allow.
        """
        from winnow.budget import Budget
        from winnow.masks.structure import NM, Unstructured

        given = [name for name in BUDGETS if getattr(self, name) is not None]
        shape = self.pattern
        if self.keeps_zeros:
            if given or not isinstance(shape, Unstructured):
                other = flag(given[0]) if given else f"--structure {self.structure}"
                raise InputError(
                    f"--method zeros keeps the zeros that the model has: leave out {other}, or choose another --method.",
                    option=given[0] if given else "structure",
                )
            return []
        if len(given) > 1:
            named = " and ".join(map(flag, given))
            raise InputError(f"{named} are mutually exclusive: set one budget.", option=given[1])
        if not isinstance(shape, NM):
            if not given:
                raise InputError("set a budget: --sparsity 0.5, --bits-per-weight 3, --size 40MB or --max-drop 1.")
            if self.sparsity is not None:
                return [Budget.of(sparsity=s) for s in rates_of(self.sparsity)]
            return [] if self.max_drop is not None else [Budget.of(None, self.bits_per_weight, self.size)]
        fixed = 1 - shape.n / shape.m
        rates = [fixed] if self.sparsity is None else rates_of(self.sparsity)
        if given not in ([], ["sparsity"]):
            text = f"fixes the sparsity: leave out {flag(given[0])}."
        elif self.learns and all(0 < r <= fixed + 1e-9 for r in rates):
            return [Budget.of(sparsity=s) for s in rates]
        elif self.learns:
            text = f"prunes at most {fixed:g} of a layer: give a --sparsity above 0 and up to {fixed:g}."
        elif [round(s, 6) for s in rates] == [round(fixed, 6)]:
            return [Budget.of(sparsity=fixed)]
        else:
            text = f"means a sparsity of {fixed:g}: leave out --sparsity, or choose another pattern."
        raise InputError(f"--structure {self.structure} {text}", option=given[0])
