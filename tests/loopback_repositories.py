"""Users, repositories and commits of the loopback Hub, and its refusals."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

# every repository begins with a commit of this file, as on huggingface.co
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = {
    ".arrow",
    ".bin",
    ".ckpt",
    ".npy",
    ".npz",
    ".parquet",
    ".pt",
    ".pth",
    ".safetensors",
    ".tar",
    ".zip",
}
LFS_SIZE = 10 * 1024**2


class HubError(Exception):
    """A refusal, with the headers from which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {
            "X-Error-Message": message,
            **({"X-Error-Code": code} if code else {}),
            **headers,
        }


@dataclass(frozen=True)
class User:
    """Owner of a token; the role, "write" or "read", is the token's."""

    name: str
    role: str = "write"


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one moment."""

    sha: str
    title: str
    message: str
    author: str
    date: str
    files: dict[str, bytes] = field(repr=False)
    parent: "Commit | None" = field(repr=False)

    def history(self) -> list["Commit"]:
        return [self, *(self.parent.history() if self.parent else [])]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Files and folders by path, as the API lists them."""
        entries = {path: describe(path, content) for path, content in self.files.items()}
        for folder in {
            str(parent) for path in self.files for parent in PurePosixPath(path).parents
        } - {"."}:
            inside = "".join(
                f"{path} {entries[path]['oid']}\n" for path in self.files if is_inside(path, folder)
            )
            oid = hashlib.sha1(inside.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
        return dict(sorted(entries.items()))


@dataclass
class Repository:
    """Branches and tags name commits; each commit stays reachable by its sha."""

    repo_type: str
    repo_id: str
    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def page(self) -> str:
        return (
            f"/{self.repo_id}"
            if self.repo_type == "model"
            else f"/{self.repo_type}s/{self.repo_id}"
        )

    def find(self, revision: str, *kinds: str) -> Commit:
        """The commit of a branch, tag or sha, or of one of these `kinds` alone."""
        for kind in kinds or ("branches", "tags", "commits"):
            if commit := getattr(self, kind).get(revision):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def push(
        self, branch: str, files: dict[str, bytes], title: str, message: str = "", author: str = ""
    ) -> Commit:
        """Makes `files` the new state of the branch."""
        parent = self.branches.get(branch)
        content = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        identity = json.dumps(
            [self.repo_type, self.repo_id, parent.sha if parent else None, title, content]
        )
        sha = hashlib.sha1(identity.encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(sha, title, message, author or self.owner, date, dict(files), parent)
        self.branches[branch] = self.commits[sha] = commit
        return commit


def is_inside(path: str, folder: str) -> bool:
    return not folder or path.startswith(folder + "/")


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file that begins with `sample` belongs to large file storage."""
    return size > 0 and (
        PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_SIZE or b"\0" in sample[:512]
    )


def describe(path: str, content: bytes) -> dict[str, Any]:
    """The entry of a file in a listing. What git holds of a large one is a pointer."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if is_lfs(path, len(content), content):
        oid = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        entry["lfs"] = {
            "oid": oid,
            "sha256": oid,
            "size": len(content),
            "pointerSize": len(pointer),
        }
        content = pointer
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
