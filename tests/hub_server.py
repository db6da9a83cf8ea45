"""A hub on this machine that speaks the part of the Hugging Face hub's protocol which huggingface_hub uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".npz")
"""Endings of files that are stored as large ones, apart from the commit, as on the hub."""


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """Commits from the first to the last, each a dictionary of files, and what tags point to."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files):
        """Add a commit of whole content; returns its name."""
        name = hashlib.sha1(f"{len(self.commits)}{sorted(map(sha256, files.values()))}".encode()).hexdigest()
        self.commits.append((name, dict(files)))
        return name

    @property
    def files(self):
        return self.commits[-1][1]

    def find(self, revision):
        """Name and files of a branch, tag or commit; None if there is none."""
        name = {"main": self.commits[-1][0], **self.tags}.get(revision, revision)
        return next(((one, files) for one, files in self.commits if one == name), None)


@dataclass
class Hub:
    """What the server holds, and how it misbehaves."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which the connection breaks off, once for each beginning of a path."""
    swapped: dict[str, bytes] = field(default_factory=dict)
    """Contents sent in place of those of some files."""
    meanwhile: Callable[[], object] | None = None
    """What somebody else does, once, while files are being uploaded."""
    refused: str | None = None
    """Requests whose path matches are answered with 503."""

    @property
    def storage(self):
        """The same server under the name of another host, as large files are."""
        return self.url.replace("127.0.0.1", "localhost")

    def push(self, name, files, **options):
        """Put a repository there."""
        repo = self.repos.setdefault(name, Repo(**options))
        return repo.commit(files)

    def reset(self):
        """Forget everything but the address."""
        self.__dict__.update(vars(Hub(self.url)))

    def asked(self, pattern):
        """Requests that match."""
        return [request for request in self.requests if re.search(pattern, request)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = self._chunks()
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.refused and re.search(self.hub.refused, f"{self.command} {path}"):
            self._send(503, b"{}")
            return
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, method)(*found.groups())
                return
        self._send(404, b"{}")

    def _chunks(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in ({"content-length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status=200, **headers):
        self._send(status, json.dumps(value).encode(), content_type="application/json", **headers)

    def _fail(self, status, code="", message=""):
        self._json({"error": message}, status, x_error_code=code, x_error_message=message)

    @property
    def _may_write(self):
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _repo(self, name):
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._may_write):
            self._fail(401 if not self._may_write else 404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _revision(self, name, revision):
        repo = self._repo(name)
        if repo is None:
            return None
        found = repo.find(revision)
        if found is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def create(self):
        asked = json.loads(self.body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if not self._may_write:
            self._fail(401, message="Invalid username or password.")
        elif name in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.push(name, {".gitattributes": b"*.safetensors filter=lfs"}, private=private)
            self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, name, revision="main"):
        found = self._revision(name, revision or "main")
        if found is None:
            return
        commit, files = found
        siblings = [{"rfilename": path, "size": len(content), "blobId": "0"} for path, content in files.items()]
        repo = self.hub.repos[name]
        self._json({"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})

    def validate(self):
        content = json.loads(self.body)["content"]
        if "license: unheard-of" in content:
            self._json({"errors": [{"message": '"license" must be one of [mit, …]'}], "warnings": []}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def preupload(self, name, revision):
        found = self._revision(name, revision)
        if found is None or not self._check_writer():
            return
        if meanwhile := self.hub.meanwhile:
            self.hub.meanwhile = None
            meanwhile()
        files, asked = [], json.loads(self.body)
        ignoring = ".gitignore" in found[1] and "gitIgnore" not in asked
        for file in asked["files"]:
            large, old = file["path"].endswith(LARGE), found[1].get(file["path"])
            oid = None if old is None else sha256(old) if large else git_hash(old)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignoring, "oid": oid})
        self._json({"files": files})

    def _check_writer(self):
        if not self._may_write:
            self._fail(403, message="you have no right to write here")
        return self._may_write

    def batch(self, name):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            known = wanted["oid"] in self.hub.blobs
            upload = {"actions": {"upload": {"href": f"{self.hub.storage}/storage/{wanted['oid']}"}}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **({} if known else upload)})
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert sha256(self.body) == oid
        self.hub.blobs[oid] = self.body
        self._send(200)

    def commit(self, name, revision):
        repo = self._repo(name)
        if repo is None or not self._check_writer():
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, repo.commits[-1][0]):
            self._fail(412, message="A commit has happened since. Please refresh and try again.")
            return
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        made = repo.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{made}", "commitOid": made})

    def tag(self, name, revision):
        repo, tag = self._repo(name), json.loads(self.body)["tag"]
        if repo is None or not self._check_writer():
            return
        if tag in repo.tags:
            self._fail(409, message="Tag already exists")
            return
        repo.tags[tag] = revision
        self._json({})

    def resolve(self, name, revision, path):
        found = self._revision(name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        content = files[path]
        if path.endswith(LARGE):
            self.hub.blobs[sha256(content)] = content
            self._send(
                302, location=f"{self.hub.storage}/storage/{sha256(content)}?name={path}", x_repo_commit=commit,
                x_linked_etag=f'"{sha256(content)}"', x_linked_size=len(content),
            )  # fmt: skip
        else:
            self._file(self.hub.swapped.get(path, content), etag=f'"{git_hash(content)}"', x_repo_commit=commit)

    def stored(self, oid):
        content = self.hub.swapped.get(self.query.get("name", [""])[0], self.hub.blobs[oid])
        self._file(content, etag=f'"{oid}"', x_repo_commit="")

    def _file(self, content, **headers):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        size, rest = len(content), content[start:]
        self.send_response(206 if asked else 200)
        own = {"content-length": len(rest), "accept-ranges": "bytes"}
        if asked:
            own["content-range"] = f"bytes {start}-{size - 1}/{size}"
        for key, value in (own | headers).items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = next((place for place in self.hub.break_after if self.path.startswith(place)), None)
        self.wfile.write(rest[: self.hub.break_after.pop(broken, None)])
        self.close_connection = broken is not None


def git_hash(content):
    """Name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": "create",
    r"POST /api/validate-yaml": "validate",
    rf"GET /api/models/{REPO}": "info",
    rf"GET /api/models/{REPO}/revision/(.+)": "info",
    rf"POST /api/models/{REPO}/preupload/(.+)": "preupload",
    rf"POST /api/models/{REPO}/commit/(.+)": "commit",
    rf"POST /api/models/{REPO}/tag/(.+)": "tag",
    rf"POST /{REPO}\.git/info/lfs/objects/batch": "batch",
    r"PUT /storage/(\w+)": "store",
    r"(?:GET|HEAD) /storage/(\w+)": "stored",
    rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)": "resolve",
}


@contextmanager
def serving():
    """A hub that serves within a `with` block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at_hub(monkeypatch, url, folder):
    """Let huggingface_hub use a server, a cache and no token but the tests'."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
