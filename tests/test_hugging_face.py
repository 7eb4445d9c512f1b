"""Repositories of Hugging Face's hub, which a server on this machine stands for: read and written.

Without huggingface-hub, which is an extra, what it would do is said in one line.
"""

from __future__ import annotations

import base64
import http.server
import json
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from configs import schema
from interop import cards, exports, hub, model_card
from tests.test_diffusers import DDPM, folder_of
from tests.test_exports import CHAIN, described

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """Repositories by name: the content of their files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.address = ""

    def get(self, path: str) -> tuple[int, bytes]:
        api = path.removeprefix("/api/models/")
        if api != path:
            name = "/".join(api.split("/")[:2])
            if name not in self.repositories:
                return 404, b"{}"
            files = self.repositories[name].items()
            if "/tree/" in path:
                kind = {"type": "file", "oid": COMMIT}
                tree = [{**kind, "path": file, "size": len(content)} for file, content in files]
                return 200, json.dumps(tree).encode()
            siblings = [{"rfilename": file} for file, _ in files]
            return 200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        owner, repository, _, _, *file = path.lstrip("/").split("/")
        return 200, self.repositories[f"{owner}/{repository}"]["/".join(file)]

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": f["path"], **mode} for f in json.loads(body)["files"]]}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[name][line["value"]["path"]] = content
        commit = {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        return {**commit, "success": True}


@pytest.fixture
def stand_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    constants = pytest.importorskip("huggingface_hub.constants")
    server = StandIn()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            for name, value in (("ETag", f'"{len(body)}"'), ("X-Repo-Commit", COMMIT)):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(*server.get(self.path.partition("?")[0]))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, json.dumps(server.post(self.path, body)).encode())

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setenv("SCORE_SDE_WEIGHTS", str(tmp_path / "weights"))
    yield server
    running.shutdown()
    running.server_close()


def test_a_repository_is_a_folder_that_is_fetched_once(stand_in: StandIn) -> None:
    wanted = {"config.json": b"{}", "weights.safetensors": b"abc"}
    stand_in.repositories["someone/net"] = {**wanted, "program.py": b"print()"}
    folder = hub.local("hf:someone/net")
    assert {p.name: p.read_bytes() for p in folder.glob("*") if p.is_file()} == wanted
    stand_in.repositories.clear()
    assert hub.local("hf:someone/net") == folder
    with pytest.raises(FileNotFoundError, match=r"could not be fetched.*put its files into"):
        hub.local("hf:someone/else")


def test_a_pipeline_is_pushed_with_its_page(
    stand_in: StandIn,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole folder but for its weights, which another test reads, is what an export writes."""

    def export_files(config: Any, workdir: pathlib.Path, target: pathlib.Path) -> tuple[str, str]:
        folder_of(DDPM, target / "unet")
        return "step 7, EMA", "a diffusers DDPMPipeline"

    monkeypatch.setattr(exports, "export_files", export_files)
    exports.export_weights(described(**CHAIN), tmp_path, "hf:me/net")
    files = stand_in.repositories["me/net"]
    assert sorted(files) == [
        "README.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert "`DDPMPipeline`" in files["README.md"].decode()
    printed = capsys.readouterr().out
    assert f"pushed to {stand_in.address}/me/net" in printed
    assert " is in " not in printed, "of a folder that is gone"


def test_without_the_library_one_line_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORE_SDE_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        FileNotFoundError, match=r"'\.\[hub\]', or fetch https://huggingface.co/a/b"
    ):
        hub.local("hf:a/b")
    with pytest.raises(ImportError, match=r"pip install -e '\.\[hub\]'"):
        hub.push(tmp_path, "hf:a/b")
    with pytest.raises(ImportError, match=r"\[hub\]'; nothing was exported"):  # and not: no weights
        exports.export_weights(described(**CHAIN), tmp_path / "no run", "hf:a/b")
    with pytest.raises(ValueError, match="a repository is hf:owner/name"):
        exports.export_weights(schema.base(), tmp_path, "hf:nobody")


def test_a_page_says_where_weights_are_from_and_what_they_measured(tmp_path: pathlib.Path) -> None:
    config = described(**CHAIN)
    card = cards.cards()["google/ddpm-cifar10-32"]
    origin = {"source": card.name, "sha256": "ab" * 32, "path": "x"}
    (tmp_path / "source.json").write_text(json.dumps(origin))
    (tmp_path / "eval").mkdir()
    results = {"fid": 3.174, "num_samples": 50000, "seed": 0}
    (tmp_path / "eval" / "results.json").write_text(json.dumps(results))
    page = model_card.text(config, tmp_path, "step 7, EMA", "DDPMPipeline")
    _, front, rest = page.split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["license"] == "apache-2.0"
    assert "- fid: 3.174" in rest
    assert "seed 0 and 50,000 samples" in rest
    assert "ab" * 32 in rest
    assert card.address in rest
    assert json.loads(rest.split("```json\n")[1].split("```")[0])["training"]["sde"] == "vpsde"
    bare = model_card.text(config, tmp_path / "none", "step 7, EMA", "DDPMPipeline")
    assert yaml.safe_load(bare.split("---\n")[1])["license"] == "other"
