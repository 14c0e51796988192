"""What `titok push` does: a folder that was trained or converted here, to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from .hub.cards import GENERATED
from .hub.errors import explain_hub_errors
from .pipelines import TiTokPipeline


def publish_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> None:
    """Publishes a pipeline, or a model with its processor, with a model card.

    It is loaded first: what cannot be loaded is not published. A `README.md` in the folder that someone wrote or
    edited is the card.

    Args:
        folder: The folder.
        repo_id: Repository, such as `"user/titok-l-32"`; created if it is not there.
        private: Whether a new repository is private; if not given, as the account is set up.
        token: Access token; if not given, that of `hf auth login` or `HF_TOKEN`.
        revision: Branch; created if it is not there.

    Raises:
        ValueError, OSError: If the folder does not load, or the Hub refused; see `push_to_hub`.
    """
    folder = Path(folder)
    if (folder / TiTokPipeline.config_name).exists():
        things = [TiTokPipeline.from_pretrained(folder)]
    else:
        things = [AutoModel.from_pretrained(folder)]
        if (folder / "processor_config.json").exists():
            things.append(AutoProcessor.from_pretrained(folder))
        elif (folder / "preprocessor_config.json").exists():
            things.append(AutoImageProcessor.from_pretrained(folder))
    for thing in things:
        thing.push_to_hub(repo_id, private=private, token=token, revision=revision)
    card = folder / "README.md"
    if card.exists() and GENERATED not in card.read_text(encoding="utf-8"):
        with explain_hub_errors(repo_id):
            HfApi(token=token).upload_file(
                path_or_fileobj=card, path_in_repo=card.name, repo_id=repo_id, revision=revision
            )
