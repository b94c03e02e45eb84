"""What every stored model of a report is made of: cleaned text, counts, shares, and the base class."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

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
