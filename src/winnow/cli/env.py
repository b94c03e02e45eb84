"""``winnow env``"""

from __future__ import annotations

import json
from dataclasses import asdict

from winnow.cli.flags import Json
from winnow.cli.output import put


def env(*, as_json: Json = False) -> None:
    """Print versions, machine and settings, to paste into a bug report."""
    from winnow.terminal.legible import visible
    from winnow.verbs.env import env as look
    from winnow.verbs.env import env_text

    found = look()
    if as_json:
        put(json.dumps(asdict(found)))
    else:
        print(visible(env_text(found), keep="\n"))
