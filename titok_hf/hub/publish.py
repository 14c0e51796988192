"""`push_to_hub` for everything that can be published."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError

from .cards import GENERATED, render_card
from .errors import explain_hub_errors
from .provenance import FILE_NAME, provenance_of

# Weights and provenance beside a model's `config.json`. A push deletes those of an earlier push,
# since loading might prefer them to the new ones.
MODEL_PATTERNS = (
    FILE_NAME,
    "model.safetensors",
    "model-[0-9]*-of-[0-9]*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)


class PublishMixin:
    """Adds `push_to_hub` with a model card to any class with `save_pretrained`."""

    def model_card(self, repo_id: str, revision: str | None = None) -> ModelCard:
        """Generates the model card.

        Args:
            repo_id: Repository or folder that the card's snippet loads.
            revision: Branch that it loads; defaults to the main one.
        """
        return render_card(self, provenance_of(self), repo_id, revision)

    def complete_folder(self, folder: Path) -> None:
        """Adds files that the base class does not write to a saved folder."""

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        """Same as in the base class; `push_to_hub=True` also publishes, as `repo_id` or under the
        folder's name."""
        names = (
            "repo_id",
            "commit_message",
            "commit_description",
            "private",
            "token",
            "revision",
            "create_pr",
            "tags",
        )
        publishing = {name: kwargs.pop(name) for name in names if name in kwargs}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.complete_folder(Path(save_directory))
        if push_to_hub:
            self.push_to_hub(
                publishing.pop("repo_id", Path(save_directory).name), **publishing, **kwargs
            )
        return saved

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        **save_arguments: Any,
    ) -> CommitInfo:
        """Publishes on the Hub, in one commit.

        A card that was written or edited by hand stays; a generated one is replaced.

        Args:
            repo_id: Repository, such as `"user/titok-l-32"`; created if it does not exist.
            commit_message: Commit message.
            commit_description: Text below the commit's message.
            private: Whether a new repository is private; defaults to the account's setting.
            token: Access token; defaults to that of `hf auth login` or `HF_TOKEN`.
            revision: Branch; created if it does not exist.
            subfolder: Folder in the repository; no card is written for one.
            create_pr: Whether to open a pull request instead.
            tags: Further tags of a generated card.
            save_arguments: Passed to `save_pretrained`, such as `max_shard_size`.

        Raises:
            PermissionError: If the token may not write there.
            ConnectionError: If the connection broke; nothing has changed then.
            OSError: If the Hub refused for another reason.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as folder, explain_hub_errors(repo_id):
            self.save_pretrained(folder, **save_arguments)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            models = [config.parent for config in Path(folder).rglob("config.json")]
            if not subfolder and replaces_card(api, repo_id, revision, bool(models)):
                card = self.model_card(repo_id, revision)
                card.data.tags = [*card.data.tags, *(tags or ())]
                card.save(Path(folder) / "README.md")
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=subfolder or None,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=[
                    str(model.relative_to(folder) / pattern)
                    for model in models
                    for pattern in MODEL_PATTERNS
                ],
            )


def replaces_card(api: HfApi, repo_id: str, revision: str | None, is_model: bool) -> bool:
    """Whether a push writes the card: if the repository has none, or a model replaces a generated
    one.

    A processor or scheduler is pushed beside a model, whose card stays even if it is generated.
    """
    try:
        # by commit, since a branch name might return a stale card from the cache
        sha = api.model_info(repo_id, revision=revision).sha
        card = Path(api.hf_hub_download(repo_id, "README.md", revision=sha))
    except RemoteEntryNotFoundError:
        return True
    return is_model and GENERATED in card.read_text(encoding="utf-8")
