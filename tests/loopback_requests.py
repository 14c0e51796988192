"""Requests that the loopback Hub answers: accounts, repositories, uploads, listings and downloads."""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_repositories import Commit, HubError, Repository, describe, is_inside, is_lfs

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

NAME = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
API = r"/api/(?P<repo_type>model|dataset|space)s/" + NAME
PAGE = r"/(?:(?P<repo_type>dataset|space)s/)?" + NAME
REVISION = r"/(?P<revision>[^/]+)"


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte, exclusive, that a `Range` header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{size}"})
    return start, stop


Route = Callable[..., Any]
ROUTES: list[tuple[list[str], re.Pattern[str], str | None, Route]] = []


def route(methods: str, pattern: str, access: str | None = None) -> Callable[[Route], Route]:
    """Has a method of the handler answer such requests, with the groups of the pattern as
    arguments.

    With `access`, "read" or "write", it receives the repository, if the user may do that to it.
    """

    def register(function: Route) -> Route:
        ROUTES.append((methods.split(), re.compile(pattern), access, function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: "LoopbackHub", *arguments: Any):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        pass

    def respond(self) -> None:
        """Answers one request, or does what a fault demands."""
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        fault = self.hub.take_fault(self.command, unquote(address.path))
        cut = fault if fault and fault.status is None else None
        if cut and self.command not in ("GET", "HEAD"):
            self.read_body(cut.after_bytes)
            return self.close_hard(cut.abort)
        self.body = self.read_body()
        self.status, self.reply_headers = 200, {}
        try:
            if fault and fault.status:
                raise HubError(fault.status, fault.message)
            with self.hub.lock:
                content = self.dispatch(address.path)
        except HubError as error:
            self.status, self.reply_headers = error.status, self.reply_headers | error.headers
            content = {"error": str(error)}
        if not isinstance(content, bytes):
            self.reply_headers["Content-Type"] = "application/json; charset=utf-8"
            content = json.dumps(content).encode()
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(content)), **self.reply_headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: cut.after_bytes] if cut else content)
        if cut:
            self.close_hard(cut.abort)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def read_body(self, limit: int = sys.maxsize) -> bytes:
        """The body of the request, or its first `limit` bytes."""
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while len(body) < limit and (size := int(self.rfile.readline() or b"-1", 16)):
                if size < 0 or len(chunk := self.rfile.read(size)) < size:
                    raise ConnectionError("The client has gone")
                body += chunk
                self.rfile.readline()
            if len(body) < limit:
                self.rfile.readline()
            return body
        length = min(int(self.headers.get("Content-Length") or 0), limit)
        if len(body := self.rfile.read(length)) < length:
            raise ConnectionError("The client has gone")
        return body

    def close_hard(self, abort: bool) -> None:
        self.close_connection = True
        if abort:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def dispatch(self, path: str) -> Any:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.hub.tokens.get(token)
        if token and not self.user:
            raise HubError(401, "Invalid credentials in Authorization header")
        for methods, pattern, access, function in ROUTES:
            if self.command.replace("HEAD", "GET") in methods and (
                match := pattern.fullmatch(path)
            ):
                arguments: dict[str, Any] = {
                    name: unquote(text) for name, text in match.groupdict().items() if text
                }
                if access:
                    repository = self.repository(
                        arguments.pop("repo_type", "model"), arguments.pop("repo_id")
                    )
                    if access == "write":
                        self.permit(repository.owner, f"write to {repository.repo_id}")
                    arguments["repository"] = repository
                return function(self, **arguments)
        raise self.not_understood()

    def not_understood(self) -> HubError:
        self.hub.unknown.append(f"{self.command} {unquote(self.path)}")
        return HubError(404, "The loopback hub does not understand this request")

    def repository(self, repo_type: str, repo_id: str) -> Repository:
        """A repository that the user may see."""
        repository = self.hub.repositories.get((repo_type, repo_id))
        if repository and (
            not repository.private or (self.user and self.user.name == repository.owner)
        ):
            return repository
        raise (
            HubError(404, "Repository not found", "RepoNotFound") if self.user else self.anonymous()
        )

    def anonymous(self) -> HubError:
        # the client takes a 401 for RepositoryNotFoundError over https; the code has the same
        # effect over http
        return HubError(401, "Invalid username or password.", "RepoNotFound")

    def permit(self, namespace: str, action: str) -> None:
        if self.user is None:
            raise self.anonymous()
        if self.user.name != namespace:
            raise HubError(
                403, f'You don\'t have the rights to {action} under the namespace "{namespace}"'
            )
        if self.user.role != "write":
            raise HubError(403, f"You must use a token with the role write to {action}")

    def named(self) -> tuple[str, str, dict[str, Any]]:
        """Type, id and further fields of a request to create or delete a repository."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        fields = json.loads(self.body)
        namespace = fields.get("organization") or self.user.name
        return fields.get("type") or "model", f"{namespace}/{fields['name']}", fields

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    # accounts and repositories

    @route("GET", r"/")
    def front_page(self) -> bytes:
        return b""

    @route("GET", r"/api/whoami-v2")
    def whoami(self) -> Any:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {
            "displayName": self.user.name,
            "role": self.user.role,
            "createdAt": "2026-01-01T00:00:00.000Z",
        }
        auth = {"type": "access_token", "accessToken": token}
        return {
            "type": "user",
            "name": self.user.name,
            "fullname": self.user.name,
            "orgs": [],
            "auth": auth,
        }

    @route("GET", r"/api/agent-harnesses")
    def agent_harnesses(self) -> Any:
        return {"standardEnvVars": [], "harnesses": {}}

    @route("GET", r"/api/telemetry/.*")
    def telemetry(self) -> Any:
        return {}

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self) -> Any:
        has_metadata = json.loads(self.body)["content"].startswith("---")
        warnings = (
            [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        )
        return {"errors": [], "warnings": warnings}

    @route("POST", r"/api/repos/create")
    def create(self) -> Any:
        repo_type, repo_id, fields = self.named()
        self.permit(repo_id.split("/")[0], f"create a {repo_type}")
        repository = self.hub.repositories.get((repo_type, repo_id))
        if repository:
            self.status = 409
        else:
            repository = self.hub.create(repo_type, repo_id, fields.get("visibility") == "private")
        error = (
            {"error": f"You already created this {repo_type} repo"} if self.status == 409 else {}
        )
        return {**error, "url": self.base + repository.page, "name": repo_id, "id": repo_id}

    @route("DELETE", r"/api/repos/delete")
    def delete(self) -> Any:
        repo_type, repo_id, _ = self.named()
        self.permit(self.repository(repo_type, repo_id).owner, f"delete {repo_id}")
        del self.hub.repositories[repo_type, repo_id]
        return {}

    @route("GET", API + r"/refs", "read")
    def refs(self, repository: Repository) -> Any:
        def described(kind: str, refs: dict[str, Commit]) -> list[dict[str, str]]:
            return [
                {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.sha}
                for n, c in refs.items()
            ]

        lists = {
            "branches": described("heads", repository.branches),
            "tags": described("tags", repository.tags),
        }
        return {**lists, "converts": [], "pullRequests": []}

    @route("POST DELETE", API + r"/(?P<kind>branch|tag)" + REVISION, "write")
    def ref(self, repository: Repository, kind: str, revision: str) -> Any:
        """A branch is created under the name in the path, a tag of the revision in the path."""
        refs = repository.branches if kind == "branch" else repository.tags
        if self.command == "DELETE":
            repository.find(revision, "branches" if kind == "branch" else "tags")
            if kind == "branch" and revision == "main":
                raise HubError(403, "The default branch cannot be deleted")
            del refs[revision]
            return {}
        fields = json.loads(self.body)
        name, target = (
            (revision, fields.get("startingPoint", "main"))
            if kind == "branch"
            else (fields["tag"], revision)
        )
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = repository.find(target)
        return {}

    @route("GET", API + r"/commits" + REVISION, "read")
    def commits(self, repository: Repository, revision: str) -> Any:
        return [
            {
                "id": c.sha,
                "title": c.title,
                "message": c.message,
                "authors": [{"user": c.author}],
                "date": c.date,
            }
            for c in repository.find(revision).history()
        ]

    # uploads

    @route("POST", API + r"/preupload" + REVISION, "write")
    def preupload(self, repository: Repository, revision: str) -> Any:
        entries, answers = repository.find(revision, "branches").entries(), []
        for file in json.loads(self.body)["files"]:
            mode = (
                "lfs"
                if is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
                else "regular"
            )
            entry = entries.get(file["path"], {})
            oid = entry.get("lfs", entry).get(
                "oid"
            )  # the client leaves out a file that has not changed
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return {"files": answers}

    @route("POST", PAGE + r"\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repository: Repository) -> Any:
        answers = []
        for blob in json.loads(self.body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.base}/lfs/{blob['oid']}"}}}
            answers.append({**blob, **({} if blob["oid"] in self.hub.blobs else upload)})
        return {"transfer": "basic", "objects": answers}

    @route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content does not have this sha256")
        self.hub.blobs[oid] = self.body
        return b""

    @route("POST", API + r"/commit" + REVISION, "write")
    def commit(self, repository: Repository, revision: str) -> Any:
        head = repository.find(revision, "branches")
        header, files = {}, dict(head.files)
        for line in self.body.splitlines():
            key, value = (operation := json.loads(line))["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.hub.blobs:
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "lfsFile":
                raise HubError(400, f"The content of {value['path']} was not uploaded")
            elif key in ("deletedFile", "deletedFolder"):
                path, folder = value["path"].rstrip("/"), key == "deletedFolder"
                kept = {
                    k: v
                    for k, v in files.items()
                    if not (is_inside(k, path) if folder else k == path)
                }
                if len(kept) == len(files):
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                files = kept
            else:
                raise self.not_understood()
        if "create_pr" in self.query:
            raise self.not_understood()
        if not head.sha.startswith(header.get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        author = self.user.name if self.user else ""
        sha = repository.push(
            revision, files, header["summary"], header.get("description", ""), author
        ).sha
        return {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.base}{repository.page}/commit/{sha}",
        }

    # listings and downloads

    @route("GET", API + r"/tree" + REVISION + r"(?:/(?P<folder>.+))?", "read")
    def tree(self, repository: Repository, revision: str, folder: str = "") -> Any:
        entries, folder = repository.find(revision).entries(), folder.rstrip("/")
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        return [
            entry
            for path, entry in entries.items()
            if (
                is_inside(path, folder)
                if recursive
                else PurePosixPath(path).parent == PurePosixPath(folder)
            )
        ]

    @route("POST", API + r"/paths-info" + REVISION, "read")
    def paths_info(self, repository: Repository, revision: str) -> Any:
        entries = repository.find(revision).entries()
        paths = [path.rstrip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        return [entries[path] for path in paths if path in entries]

    @route("GET", PAGE + r"/resolve" + REVISION + r"/(?P<path>.+)", "read")
    def resolve(self, repository: Repository, revision: str, path: str) -> Any:
        commit = repository.find(revision)
        self.reply_headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        entry = describe(path, content)
        self.reply_headers["ETag"] = f'"{entry.get("lfs", entry)["oid"]}"'
        if "lfs" in entry:
            self.reply_headers |= {
                "X-Linked-Etag": self.reply_headers["ETag"],
                "X-Linked-Size": str(len(content)),
            }
        if wanted := byte_range(self.headers.get("Range"), len(content)):
            self.status = 206
            self.reply_headers["Content-Range"] = (
                f"bytes {wanted[0]}-{wanted[1] - 1}/{len(content)}"
            )
            content = content[slice(*wanted)]
        return content

    @route("GET", API + r"(?:/revision/(?P<revision>[^/]+))?", "read")
    def info(self, repository: Repository, revision: str = "main") -> Any:
        commit = repository.find(revision)
        files = [describe(path, content) for path, content in sorted(commit.files.items())]
        return {
            "_id": hashlib.sha1(repository.repo_id.encode()).hexdigest()[:24],
            "id": repository.repo_id,
            "author": repository.owner,
            "sha": commit.sha,
            "createdAt": commit.history()[-1].date,
            "lastModified": commit.date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [
                {
                    "rfilename": file["path"],
                    "size": file["size"],
                    "blobId": file["oid"],
                    "lfs": file.get("lfs"),
                }
                for file in files
            ],
        }
