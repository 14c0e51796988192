"""What `titok push` does: a folder that was trained or converted here, to the Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel

from .evaluation.results import Evaluation
from .evaluation.weights import state_sha256
from .hub.cards import GENERATED
from .hub.errors import explain_hub_errors
from .pipelines import TiTokPipeline


def publish_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    results: Sequence[str | Path] = (),
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
        results: Files that `titok evaluate` wrote about these weights. They become part of the configuration, and so
            of the card and its metadata.

    Raises:
        ValueError, OSError: If the folder does not load, a result is of other weights, or the Hub refused; see
            `push_to_hub`.
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
    for path in results:
        add_result(things[0], Evaluation.load(path), path)
    for thing in things:
        thing.push_to_hub(repo_id, private=private, token=token, revision=revision)
    card = folder / "README.md"
    if card.exists() and GENERATED not in card.read_text(encoding="utf-8"):
        with explain_hub_errors(repo_id):
            HfApi(token=token).upload_file(
                path_or_fileobj=card, path_in_repo=card.name, repo_id=repo_id, revision=revision
            )


def add_result(thing: TiTokPipeline | PreTrainedModel, result: Evaluation, path: str | Path) -> None:
    """Puts a result into the configuration of the model that it is about; takes the place of an earlier one of the
    same metric and protocol.

    Raises:
        ValueError: If the result is of other weights.
    """
    part = "tokenizer" if result.task == "reconstruction" else "generator"
    measured = getattr(result, part)
    model = getattr(thing, part, None) if isinstance(thing, TiTokPipeline) else thing
    if measured is None or model is None or measured["weights_sha256"] != state_sha256(model):
        of = "images whose maker it does not know" if measured is None else f"other weights ({measured['id']})"
        raise ValueError(f"{path} is a result of {of}: measure the {part} that you publish.")
    new = result.card_results()
    replaced = {(entry["metric"], entry["protocol"]) for entry in new}
    provenance = model.config.provenance or {}
    kept = [old for old in provenance.get("results", []) if (old["metric"], old["protocol"]) not in replaced]
    model.config.provenance = {**provenance, "results": kept + new}
