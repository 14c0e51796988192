"""Model and data set cards: what it is, how to use it, where it comes from, how well it does, whom
to cite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

GENERATED = "<!-- Written by titok_hf, which writes it anew on the next push. Delete this line to keep your edits. -->"

TITOK_CITATION = """@inproceedings{yu2024titok,
  author    = {Qihang Yu and Mark Weber and Xueqing Deng and Xiaohui Shen and Daniel Cremers and Liang-Chieh Chen},
  title     = {An Image is Worth 32 Tokens for Reconstruction and Generation},
  booktitle = {NeurIPS},
  year      = {2024},
  note      = {arXiv 2406.07550}
}"""
MASKGIT_CITATION = """@inproceedings{chang2022maskgit,
  author    = {Huiwen Chang and Han Zhang and Lu Jiang and Ce Liu and William T. Freeman},
  title     = {MaskGIT: Masked Generative Image Transformer},
  booktitle = {CVPR},
  year      = {2022},
  note      = {arXiv 2202.04200}
}"""

VTP_CITATION = """@article{yao2025vtp,
  author  = {Jingfeng Yao and Yuda Song and Yucong Zhou and Xinggang Wang},
  title   = {Towards Scalable Pre-training of Visual Tokenizers for Generation},
  journal = {arXiv preprint arXiv:2512.13687},
  year    = {2025}
}"""


@dataclass
class Description:
    """What a card says of a class of things; the rest comes from its provenance.

    Args:
        title: Heading.
        text: What it is, in a few sentences.
        usage: Python that runs, `{repo_id}` where the repository goes.
        library_name, pipeline_tag, tags: Metadata.
        citations: BibTeX entries.
    """

    title: str
    text: str
    usage: str
    library_name: str
    pipeline_tag: str
    tags: Sequence[str] = ()
    citations: Sequence[str] = field(default=(TITOK_CITATION,))


def render_card(
    description: Description,
    provenance: Mapping[str, Any] | None,
    repo_id: str,
    revision: str | None = None,
) -> ModelCard:
    """The model card of a thing.

    Args:
        description: What it is.
        provenance: Where it comes from, see `docs/hub.md`: `license`, `base_model`, `datasets`,
            `training_data`, `recipe`, and `results`, each with `task`, `dataset`, `split`,
            `metric`, `name`, `value`, `standard_error`, `protocol` and `source`.
        repo_id: Repository or folder that the snippet loads.
        revision: Branch that it loads; the main one if not given.
    """
    place = f'"{repo_id}"' if revision is None else f'"{repo_id}", revision="{revision}"'
    provenance = provenance or {}
    results = provenance.get("results", [])
    metadata = ModelCardData(
        library_name=description.library_name,
        pipeline_tag=description.pipeline_tag,
        tags=["titok", "image-tokenizer", *description.tags],
        license=provenance.get("license"),
        base_model=provenance.get("base_model"),
        datasets=provenance.get("datasets"),
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=[
            EvalResult(
                task_type=result["task"],
                dataset_type=result["dataset"],
                dataset_name=result["dataset"],
                dataset_split=result.get("split"),
                metric_type=result["metric"],
                metric_name=result.get("name", result["metric"]),
                metric_value=result["value"],
                metric_args={
                    key: result[key] for key in ("protocol", "standard_error") if result.get(key)
                },
                source_name=result.get("source") and "source",
                source_url=result.get("source"),
            )
            for result in results
        ]
        or None,
    )
    parts = [
        f"# {description.title}",
        GENERATED,
        description.text,
        "## Use\n\n" + code("python", description.usage.replace('"{repo_id}"', place)),
    ]
    if training := training_section(provenance):
        parts.append(f"## Training\n\n{training}")
    if results:
        rows = "\n".join(
            f"| {result.get('name', result['metric'])} | {rounded(result)} | {result['dataset']} | "
            f"{result.get('split', '')} | {result['protocol']} |"
            for result in results
        )
        parts.append(
            "## Results\n\n| metric | value | data | split | protocol "
            f"|\n|---|---|---|---|---|\n{rows}"
        )
    parts.append("## Citation\n\n" + code("bibtex", "\n\n".join(description.citations)))
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def rounded(result: Mapping[str, Any]) -> str:
    """A result's value, and its standard error if it is known."""
    error = result.get("standard_error")
    return f"{result['value']:.4g}" + (f" ± {error:.2g}" if error else "")


def training_section(provenance: Mapping[str, Any]) -> str:
    """Data, base models and recipe, as far as they are known."""
    lines = []
    if base_models := provenance.get("base_model"):
        base_models = [base_models] if isinstance(base_models, str) else base_models
        lines.append("Weights: " + ", ".join(f"`{name}`" for name in base_models) + ".")
    if data := provenance.get("training_data") or ", ".join(provenance.get("datasets") or []):
        lines.append(f"Data: {data}.")
    if recipe := provenance.get("recipe"):
        lines.append("Recipe:\n\n" + code("yaml", yaml.safe_dump(recipe, sort_keys=False).rstrip()))
    return "\n\n".join(lines)


def token_dataset_text(
    images: str,
    tokenizer: str,
    model_class: str,
    shape: tuple[int, ...],
    codebook_size: int | None,
    copies: str | None,
    labelled: bool,
    num_unreadable: int,
    split: str,
    repo_id: str,
) -> str:
    """The text of the card of a data set of tokens.

    Args:
        images: What the images are.
        tokenizer, model_class: Repository and class of the tokenizer.
        shape: Of a row: codes `(N,)`, or latents `(K, C)` or `(C, h, w)`; with copies one axis
            before.
        codebook_size: Of a discrete tokenizer; `None` for latents.
        copies: What the copies of an image are, if there are several.
        labelled: Whether there are labels.
        num_unreadable: Images and shards that could not be read.
        split, repo_id: What the snippet loads.
    """
    column, decode = ("latents", "decode") if codebook_size is None else ("codes", "decode_codes")
    shape_of_one = shape if copies is None else shape[1:]
    if codebook_size is None:
        title = f"latents of shape {shape_of_one}"
        content = f"{title} of the tokenizer `{tokenizer}`"
    else:
        title = f"{shape_of_one[0]} tokens"
        content = f"{shape_of_one[0]} codes in [0, {codebook_size}) of the tokenizer `{tokenizer}`"
    usage = (
        "from datasets import load_dataset\n\n"
        f'tokens = load_dataset("{repo_id}")["{split}"].with_format("torch")\n'
        f'{column} = tokens[0]["{column}"]  # {shape}'
    )
    text = f"The images of `{images}`, each as {content}{', with its label' if labelled else ''}."
    if copies is not None:
        text += f" There are {shape[0]} copies of each image: {copies}."
    if num_unreadable:
        text += " What could not be read is left out; `unreadable.jsonl` lists it."
    argument = column if copies is not None else f"{column}[None]"
    return (
        f"# Images as {title}\n\n{GENERATED}\n\n"
        f"{text} Made with `titok_hf`; a generator trains on these instead of on images.\n\n"
        f"## Use\n\n{code('python', usage)}\n\n"
        f'`{model_class}.from_pretrained("{tokenizer}").{decode}({argument})` makes an image of '
        "them again.\n\n"
        f"## Citation\n\n{code('bibtex', TITOK_CITATION)}\n"
    )


def code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
