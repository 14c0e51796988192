"""Publishing of a trained or converted folder (`titok push`)."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel

from .evaluation.learnability import Learnability
from .evaluation.results import Evaluation
from .hub.cards import GENERATED
from .hub.errors import explain_hub_errors
from .hub.hashes import state_sha256
from .hub.provenance import has_provenance, with_results, write_provenance
from .modeling.diffusers_tokenizer import DiffusersTokenizer
from .modeling.vtp import VTPModel
from .pipelines import ClassConditionalPipeline
from .progress import working


@working("publishing")
def publish_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    results: Sequence[str | Path] = (),
) -> str:
    """Publishes a pipeline, a model with its processor, or an autoencoder of diffusers, with a model
    card.

    The folder is loaded first, so that a broken one is not published. A `README.md` written or
    edited by hand becomes the card; only its results are replaced.

    Args:
        folder: Folder to publish.
        repo_id: Repository, such as `"user/titok-l-32"`; created if it does not exist.
        private: Whether a new repository is private; defaults to the account's setting.
        token: Access token; defaults to that of `hf auth login` or `HF_TOKEN`.
        revision: Branch; created if it does not exist.
        results: Files that `titok evaluate` wrote for these weights. They are added to the
            provenance in the folder and on the Hub, and so to the card and its metadata.

    Returns:
        The address of the repository.

    Raises:
        ValueError, OSError: If the folder does not load, a result is of other weights, or the Hub
            refuses; see `push_to_hub`.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if config.exists() and "_class_name" in json.loads(config.read_text()):
        if results:
            raise ValueError(
                f"{folder} is an autoencoder of diffusers, whose card takes no results."
            )
        return publish_autoencoder(folder, repo_id, private=private, token=token, revision=revision)
    if (folder / ClassConditionalPipeline.config_name).exists():
        things = [ClassConditionalPipeline.from_pretrained(folder)]
    else:
        things = [AutoModel.from_pretrained(folder)]
        if (folder / "processor_config.json").exists():
            things.append(AutoProcessor.from_pretrained(folder))
        elif (folder / "preprocessor_config.json").exists():
            things.append(AutoImageProcessor.from_pretrained(folder))
    for path in results:
        of_latents = '"undefined"' in Path(path).read_text(encoding="utf-8")  # its own field
        result = (Learnability if of_latents else Evaluation).load(path)
        part = add_result(things[0], result, path)
        subfolder = part if isinstance(things[0], ClassConditionalPipeline) else ""
        write_provenance(getattr(things[0], subfolder, things[0]).provenance, folder / subfolder)
    for thing in things:
        commit = thing.push_to_hub(repo_id, private=private, token=token, revision=revision)
    path = folder / "README.md"
    if path.exists() and GENERATED not in path.read_text(encoding="utf-8"):
        content, generated = path.read_bytes(), things[0].model_card(repo_id, revision).data
        if generated.eval_results:
            card = ModelCard.load(path)
            card.data.model_name, card.data.eval_results = (
                generated.model_name,
                generated.eval_results,
            )
            content = str(card).encode()
        with explain_hub_errors(repo_id):
            HfApi(token=token).upload_file(
                path_or_fileobj=content, path_in_repo=path.name, repo_id=repo_id, revision=revision
            )
    return str(commit.repo_url)


def publish_autoencoder(
    folder: Path, repo_id: str, private: bool | None, token: str | None, revision: str | None
) -> str:
    """Publishes an autoencoder of diffusers, such as a converted VA-VAE, with the card in its folder, and
    returns the address of the repository."""
    DiffusersTokenizer.from_pretrained(folder)  # a broken one is not published
    with explain_hub_errors(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload AutoencoderKL",
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "README.md"],
        )
    return str(commit.repo_url)


def add_result(
    thing: ClassConditionalPipeline | PreTrainedModel,
    result: Evaluation | Learnability,
    path: str | Path,
) -> str:
    """Adds a result to its model's provenance and replaces one of the same metric and protocol.

    Returns:
        The part of a pipeline that the result is about: `"tokenizer"` or `"transformer"`.

    Raises:
        ValueError: If the result is of other weights, does not record of which, or is of an autoencoder
            of diffusers.
    """
    part = "transformer" if result.task == "generation" else "tokenizer"
    models = {part: thing}
    if isinstance(thing, ClassConditionalPipeline):  # generated images also depend on the tokenizer
        models = {name: getattr(thing, name) for name in dict.fromkeys((part, "tokenizer"))}
    for name, model in models.items():
        measured = result.generator if name == "transformer" else result.tokenizer
        if measured is None:
            raise ValueError(
                f"{path} does not record which model made the images: evaluate the model that you "
                "publish."
            )
        if isinstance(model, VTPModel):  # evaluated without its text encoder
            parts = ("vision_encoder", "pixel_decoder")
            model = nn.ModuleDict(
                {child: getattr(model, child) for child in parts if hasattr(model, child)}
            )
        if measured["weights_sha256"] != state_sha256(model):
            raise ValueError(
                f"{path} is a result of another {name}, {measured['id']} ({measured['class']}): "
                "evaluate the model that you publish."
            )
    if not has_provenance(models[part]):
        raise ValueError(
            f"{path} is a result of an autoencoder of diffusers, whose card takes no results."
        )
    models[part].provenance = with_results(models[part].provenance, result.card_results())
    return part
