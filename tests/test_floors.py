"""The picture of the floors is the one that the contract and the rooms' docstrings give."""

import runpy

from places import REPO


def test_the_picture_is_up_to_date():
    found = runpy.run_path(str(REPO / "docs" / "floors.py"))
    assert all(found["sentence"](room) for rooms in found["floors"]() for room in rooms if room != "__main__")
    assert (REPO / "docs" / "floors.svg").read_text(encoding="utf-8") == found["draw"](), "run: python docs/floors.py"
