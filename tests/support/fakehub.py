"""The Hugging Face Hub in place of the network: huggingface_hub's own code runs up to the HTTP requests, which are answered here."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest


class FakeHub:
    """``files``: path in the repository -> bytes, of what was committed. ``fail`` gets every request first, and may raise or answer."""

    def __init__(self) -> None:
        self.repo = ""
        self.files: dict[str, bytes] = {}
        self.fail: Any = lambda request: None

    def __call__(self, request: Any) -> Any:
        import httpx

        answer = self.fail(request)
        if answer is not None:
            return answer
        if request.method in ("GET", "HEAD"):  # there is nothing yet
            return httpx.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        path, body = request.url.path, request.read()
        if path == "/api/repos/create":
            self.repo = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
            return httpx.Response(200, json={"url": f"https://huggingface.co/{self.repo}"})
        if path == "/api/validate-yaml":
            return httpx.Response(200, json={"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return httpx.Response(200, json={"files": modes})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"https://huggingface.co/{self.repo}/commit/1"
            return httpx.Response(200, json={"commitUrl": address, "commitOid": "1"})
        raise AssertionError(f"{request.method} {request.url} was not expected")


@pytest.fixture
def fake_hub(monkeypatch):
    hub, httpx = pytest.importorskip("huggingface_hub"), pytest.importorskip("httpx")
    found = FakeHub()
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(found)))
    yield found
    hub.set_client_factory(hub.utils._http.default_client_factory)
