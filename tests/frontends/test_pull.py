"""`understudy pull` against a hub on this machine: what is needed, what is here, what is missing, and where it stopped."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.frontends.conftest import Run

NAME = "org/model"
COMMIT = "c0ffee" + "0" * 34
WEIGHTS = bytes(range(256)) * 1024
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode(),
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[::-1],
    # what no run needs
    "model.fp32.safetensors": b"x" * 100_000,
    "pytorch_model.bin": b"x" * 100_000,
    "onnx/model.onnx": b"x" * 100_000,
}


class SmallHub(BaseHTTPRequestHandler):
    """Answers as the hub does, for one model with FILES; notes what was asked for, and cuts weights off after `most` bytes."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[tuple[str, str, str]]
    most: int

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = f"/api/models/{NAME}"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}", api):
            self._json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})
        elif path == f"{api}/tree/{COMMIT}":
            self._json([self._entry(name) for name in self.files])
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            self._file(path.removeprefix(f"/{NAME}/resolve/{COMMIT}/"))
        elif path.startswith(api):
            self._refuse("RevisionNotFound")
        else:
            self._refuse("RepoNotFound")

    do_HEAD = do_GET

    def _entry(self, name: str) -> dict[str, Any]:
        digest = hashlib.sha256(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": digest[:40]}

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self._head(200, len(data), {"Content-Type": "application/json"})
        self.wfile.write(data)

    def _refuse(self, code: str) -> None:
        self._head(404, 0, {"X-Error-Code": code, "X-Error-Message": "not here"})

    def _file(self, name: str) -> None:
        data = self.files[name]
        asked = self.headers.get("Range", "")
        self.asked.append((self.command, name, asked))
        first = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        told = {"ETag": f'"{self._entry(name)["oid"]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if first:
            told["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._head(206 if first else 200, len(data) - first, told)
        if self.command == "GET":
            most = type(self).most
            self.wfile.write(data[first : first + most])
            if len(data) - first > most:
                self.close_connection = True

    def _head(self, status: int, length: int, told: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **told}.items():
            self.send_header(key, value)
        self.end_headers()


Hub = type[SmallHub]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A hub, and the environment in which it is the hub."""
    kind: Hub = type("OneHub", (SmallHub,), {"files": dict(FILES), "asked": [], "most": 1 << 30})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        yield kind, {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", **home}
        server.shutdown()


def test_what_runs_need_is_downloaded_once(hub: tuple[Hub, dict[str, str]], command: Run) -> None:
    kind, environment = hub
    done = command("pull", NAME, "--json", **environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    path = Path(told["path"])
    spare = ("model.fp32.safetensors", "pytorch_model.bin", "onnx/model.onnx")
    needed = {name: data for name, data in FILES.items() if name not in spare}
    assert {file.name: file.read_bytes() for file in path.iterdir()} == needed and len(needed) == 5
    assert told["bytes"] == sum(map(len, needed.values())) and told["commit"] == COMMIT and path.name == COMMIT
    assert f"{NAME} at {COMMIT[:12]}: 5 files, 512 KiB" in done.stderr and "Traceback" not in done.stderr
    kind.asked.clear()
    again = command("pull", f"{NAME}@{COMMIT}", "--json", **environment)
    assert json.loads(again.stdout)["downloaded"] == 0 and "512 KiB are here" in again.stderr
    assert not [name for method, name, _ in kind.asked if method == "GET"]


def test_a_download_that_stopped_goes_on_with_what_is_missing(hub: tuple[Hub, dict[str, str]], command: Run) -> None:
    kind, environment = hub
    kind.files["model-2.safetensors"] = b"small"
    kind.most = 100_000
    stopped = command("pull", NAME, "--quiet", **environment)
    assert stopped.returncode == 1 and "Downloading org/model failed" in stopped.stderr.splitlines()[-1]
    kind.most = 1 << 30
    done = command("pull", NAME, "--json", **environment)
    told = json.loads(done.stdout)
    assert (Path(told["path"]) / "model-1.safetensors").read_bytes() == WEIGHTS and told["downloaded"] == len(WEIGHTS)
    # what had come whole does not come again
    assert [name for method, name, _ in kind.asked if method == "GET"].count("model-2.safetensors") == 1


def test_an_index_that_an_earlier_model_left_counts_for_nothing(hub: tuple[Hub, dict[str, str]], command: Run) -> None:
    kind, environment = hub
    kind.files["model.safetensors"] = b"whole"
    done = command("pull", NAME, "--json", **environment)
    path = Path(json.loads(done.stdout)["path"])
    assert [file.name for file in path.glob("*.safetensors")] == ["model.safetensors"]


def test_what_cannot_be_downloaded_is_told_in_one_line(hub: tuple[Hub, dict[str, str]], command: Run) -> None:
    kind, environment = hub
    wrong = [
        ((NAME, "--revision", "v9"), {}, "no revision 'v9'"),
        (("org/other",), {}, "no such model on the hub"),
        ((NAME,), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids it"),
    ]
    for words, more, says in wrong:
        done = command("pull", *words, **{**environment, **more})
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    del kind.files["config.json"]
    done = command("pull", NAME, **environment)
    assert done.returncode == 1 and "has no config.json on the hub" in done.stderr and done.stderr.count("\n") == 1


def test_room_on_the_disk_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from understudy.frontends import main
    from understudy.weights.hub import RemoteFile, RemoteModel

    files = (RemoteFile("config.json", 5, True), RemoteFile("model.safetensors", 4 << 30, False))
    fetched: list[object] = []
    monkeypatch.setattr(RemoteModel, "fetch", lambda self, report: fetched.append(self))
    monkeypatch.setattr("understudy.weights.hub.remote", lambda *_: RemoteModel(NAME, COMMIT, tmp_path, files))
    monkeypatch.setattr("understudy.plan.machine.free_bytes", lambda _: 1 << 30)
    assert main(["pull", NAME]) == 2 and not fetched
    assert "4 GiB are missing and 1 GiB are free" in capsys.readouterr().err
    monkeypatch.setattr("understudy.plan.machine.free_bytes", lambda _: 5 << 30)
    assert main(["pull", NAME]) == 0 and len(fetched) == 1
    assert main(["pull", str(tmp_path)]) == 2
