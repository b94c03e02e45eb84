"""What every stored model of a report is made of: cleaned text, counts, shares, and the base class."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from winnow.errors import FormatError
from winnow.notebook import Card, Shown

# control characters (terminals obey some) and the marks that reorder the text after them
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}\Z")


def _clean(value: Any) -> Any:
    """Text that any file can hold: lone surrogates, control and reordering characters become U+FFFD."""
    if not isinstance(value, str):
        return value
    return _CONTROL.sub("\ufffd", value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _image(value: str) -> str:
    if not _IMAGE.match(value):
        raise ValueError("an image is a base64 data URI of a png, jpeg, gif or webp file")
    return value


Text = Annotated[str, BeforeValidator(_clean)]
Clean = Annotated[Any, BeforeValidator(_clean)]  # any value; text is cleaned
Image = Annotated[str, AfterValidator(_image)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    # Perplexity may be infinite; JSON has no word for that, so it is written as the string "Infinity".
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())


R = TypeVar("R", bound="Record")


class Record(Shown, Part):
    """The whole of one JSON file. Its first field is ``format``, the version of its schema."""

    what: ClassVar[str]  # it is, in an error: "report"
    again: ClassVar[str]  # how a damaged one is made again

    def _card(self) -> Card:
        return Card(type(self).__name__, str(getattr(self, "title", self.what)))

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls: type[R], path: Path) -> R:
        """What a file holds.

        Raises:
            OSError: it cannot be read.
            FormatError: it is damaged, or of a format that this version does not know.
        """
        try:
            raw = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is damaged (not JSON): {cls.again}.") from error
        version, known = raw.get("format") if isinstance(raw, dict) else None, cls.model_fields["format"].default
        if version != known:
            raise FormatError(
                f"{path} has {cls.what} format {version!r}, this winnow reads {known}: use the version that wrote it."
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
            raise FormatError(f"{path} is damaged ({where}): {cls.again}.") from error


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
