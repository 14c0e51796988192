"""Converts official checkpoints to our folders, and back."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..hub.cards import render_card
from ..hub.errors import explain_hub_errors
from ..hub.folders import whole_folder
from ..hub.provenance import provenance_of
from ..modeling.lightning_dit import LightningDiTModel
from ..modeling.maskgit.modeling_maskgit import MaskGitPreTrainedModel
from ..modeling.titok import TiTokImageProcessor
from ..modeling.vtp import VTPImageProcessor, VTPModel, VTPProcessor
from ..modeling.vtp.processing_vtp import clip_tokenizer
from ..pipelines import LatentDiTPipeline, MaskGitScheduler, TiTokPipeline
from ..progress import working
from .checkpoint import SUFFIXES, find_weights, read_config, read_tensors, write_tensors
from .formats import ALL_FORMATS
from .lightning_dit import official_flow_sampling, read_statistics
from .maskgit import official_sampling, sampling_to_official
from .official import OfficialFormat, Shapes


@dataclass
class OfficialCheckpoint:
    """A model loaded from an official checkpoint, with its official configuration and its source."""

    model: PreTrainedModel | AutoencoderKL
    config: dict[str, Any]
    source: str | Path


def load_official(
    source: str | Path,
    config: str | Path | None = None,
    dtype: torch.dtype | None = None,
    **location: Any,
) -> OfficialCheckpoint:
    """Loads an official tokenizer (TiTok, VTP or VA-VAE), generator (MaskGIT or LightningDiT) or VQGAN,
    and detects which it is.

    Args:
        source: A file (`.safetensors`, or a `.bin` or `.pt` of tensors); a folder with one; a Hub
            repository; or a file of a Hub repository, such as
            `fun-research/TiTok/tokenizer_titok_l32.bin`.
        config: The official configuration, JSON or YAML. Defaults to `config.json` beside the
            weights; without one, it is inferred from tensor shapes.
        dtype: Dtype of the weights; as stored if not given.
        location: `revision`, `token`, `cache_dir`, … of a repository.

    Raises:
        OSError: If the file, folder or repository does not exist.
        ValueError: If it is none of them, a file is corrupt or unsafe, or weights and
            configuration do not fit.
    """
    files = find_weights(local_path(str(source), **location))
    beside = files[0].parent / "config.json"
    official_config = None
    if config is not None or beside.exists():
        official_config = read_config(config or beside)
        if not any(known.is_official(official_config) for known in ALL_FORMATS):
            raise ValueError(
                f"{source} is in the format of titok_hf already: `from_pretrained` loads it."
            )
    tensors = read_tensors(files)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    official_format = recognize(shapes, source)
    if official_config is None:
        official_config = official_format.config_from_shapes(shapes)
    our_config = official_format.our_config(official_config)
    state_dict = official_format.to_ours(tensors, our_config, dtype)
    model = official_format.model(our_config, state_dict)
    model.provenance = official_format.provenance(source)
    return OfficialCheckpoint(model.eval(), official_config, source)


def local_path(source: str, **location: Any) -> Path:
    """Returns the local path of a file or folder, downloading it if it is not local."""
    if Path(source).exists():
        return Path(source)
    repo_id, file = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    with explain_hub_errors(repo_id):
        if source.endswith(SUFFIXES) and file:
            return Path(hf_hub_download(repo_id, file, **location))
        if source.count("/") == 1 and not source.endswith(SUFFIXES):
            # the small files first, so that nothing large is downloaded if there are many checkpoints
            folder = Path(snapshot_download(repo_id, allow_patterns="*.json", **location))
            weights = [
                name
                for name in files_of(repo_id, **location)
                if "/" not in name and name.endswith(SUFFIXES)
            ]
            if len(weights) > 1 and not list(folder.glob("*.index.json")):
                raise ValueError(
                    f"{repo_id} holds more than one checkpoint: {', '.join(weights)}. Name one, "
                    f"such as {repo_id}/{weights[0]}."
                )
            return Path(
                snapshot_download(
                    repo_id,
                    allow_patterns=["*.json", *(f"*{suffix}" for suffix in SUFFIXES)],
                    **location,
                )
            )
    raise FileNotFoundError(
        f"{source} is neither a file or folder here, nor a Hub repository or a file of one."
    )


def files_of(
    repo_id: str, revision: str | None = None, token: str | None = None, **location: Any
) -> list[str]:
    """Returns the names of a repository's files; none when offline."""
    if is_offline_mode() or location.get("local_files_only"):
        return []
    return HfApi(token=token).list_repo_files(repo_id, revision=revision)


def recognize(shapes: Shapes, source: str | Path) -> OfficialFormat:
    """Returns the format of a checkpoint with tensors of these names and shapes.

    Raises:
        ValueError: If no format fits.
    """
    for official_format in ALL_FORMATS:
        if official_format.recognizes(shapes):
            return official_format
    names = ", ".join(official_format.model_class.__name__ for official_format in ALL_FORMATS)
    raise ValueError(
        f"{source} is none of the official checkpoints ({names}): it has tensors such "
        f"as {', '.join(list(shapes)[:3]) or 'none at all'}."
    )


def build_pipeline(
    tokenizer: PreTrainedModel | AutoencoderKL, generator: OfficialCheckpoint
) -> TiTokPipeline | LatentDiTPipeline:
    """Builds a pipeline that samples as the reference does with this generator.

    Raises:
        ValueError: If the two do not fit each other, or the second is not a generator; if a
            LightningDiT has no statistics of the latents.
    """
    model = generator.model
    if isinstance(model, LightningDiTModel):
        if model.config.latent_mean is None:
            raise ValueError(
                "A LightningDiT needs the statistics of the latents that it was trained on: give "
                "`statistics` (`--statistics`), such as the reference's latents_stats.pt or the "
                "latent_statistics.json of `titok tokenize`."
            )
        sampling = official_flow_sampling(generator.config, generator.source)
        return LatentDiTPipeline(tokenizer, model, FlowMatchEulerDiscreteScheduler(), **sampling)
    if not isinstance(model, MaskGitPreTrainedModel):
        raise ValueError(
            f"A generator is expected beside the tokenizer, got a {type(model).__name__}."
        )
    scheduler, sampling = official_sampling(generator.config)
    mask_token_id = model.config.mask_token_id
    return TiTokPipeline(tokenizer, model, MaskGitScheduler(mask_token_id, **scheduler), **sampling)


@working("converting")
def convert(
    source: str | Path,
    output_dir: str | Path,
    generator: str | Path | None = None,
    config: str | Path | None = None,
    dtype: torch.dtype | None = None,
    statistics: str | Path | None = None,
    **location: Any,
) -> PreTrainedModel | AutoencoderKL | TiTokPipeline | LatentDiTPipeline:
    """Converts an official checkpoint into a folder that `from_pretrained` loads.

    Args:
        source: Tokenizer, generator or VQGAN, see `load_official`. A VA-VAE becomes an
            `AutoencoderKL` of diffusers.
        output_dir: The folder; written atomically.
        generator: Generator of the tokenizer `source`. The folder is then a whole pipeline, which
            samples as the reference does by default.
        config: The official configuration; if there is a generator, of both, or of a LightningDiT
            alone.
        dtype: Dtype of the weights; as stored if not given.
        statistics: File with the statistics of the latents of a LightningDiT, see
            `read_statistics`; may be a file of a Hub repository.
        location: `revision`, `token`, `cache_dir`, … of a repository.

    Returns:
        The model or pipeline.

    Raises:
        FileExistsError: If the folder already holds something.
        TypeError: If a generator is given as the tokenizer.
        OSError, ValueError: See `load_official`.
    """
    with whole_folder(output_dir) as folder:
        if generator is None:
            loaded = drawn = load_official(source, config, dtype, **location)
        else:
            drawn = load_official(generator, config, dtype, **location)
            of_tokenizer = None if isinstance(drawn.model, LightningDiTModel) else config
            loaded = load_official(source, of_tokenizer, dtype, **location)
        if statistics is not None:
            if not isinstance(drawn.model, LightningDiTModel):
                raise ValueError(
                    "`statistics` are for a LightningDiT, got them for a "
                    f"{type(drawn.model).__name__}."
                )
            drawn.model.config.update(read_statistics(local_path(str(statistics), **location)))
            drawn.model.config.validate()
        result = loaded.model if generator is None else build_pipeline(loaded.model, drawn)
        result.save_pretrained(folder)
        if isinstance(loaded.model, PreTrainedModel) and not isinstance(
            loaded.model, MaskGitPreTrainedModel | LightningDiTModel
        ):
            processor_folder = folder if generator is None else folder / "tokenizer"
            make_processor(loaded.model).save_pretrained(processor_folder)
        name = Path(output_dir).name
        render_card(result, provenance_of(result), name).save(folder / "README.md")
    return result


def make_processor(tokenizer: PreTrainedModel) -> TiTokImageProcessor | VTPProcessor:
    """Makes the processor of a tokenizer that came without one; a VTP's has CLIP's text tokenizer
    if that can be reached and fits the model."""
    image_size = tokenizer.config.image_size
    if not isinstance(tokenizer, VTPModel):
        return TiTokImageProcessor.from_image_size(image_size)
    image_processor = VTPImageProcessor.from_image_size(image_size)
    if tokenizer.config.has_text:
        with suppress(OSError, ValueError):
            return VTPProcessor(image_processor, clip_tokenizer(tokenizer.config))
    return image_processor


@working("converting")
def convert_to_official(source: str | Path, output_dir: str | Path, **location: Any) -> None:
    """Converts one of our folders into the official format, bit for bit.

    Args:
        source: Folder or Hub repository of a model or pipeline.
        output_dir: The folder; written atomically. A tokenizer or generator becomes
            `config.json` and `model.safetensors`, as in the official repositories; a VQGAN the bare
            file of tensors `maskgit-vqgan-imagenet-f16-256.bin`, a LightningDiT `lightningdit.pt`; a
            pipeline one folder each,
            `tokenizer/` and `generator/`.
        location: `revision`, `token`, `cache_dir`, … of a repository.

    Raises:
        FileExistsError: If the folder already holds something.
        ValueError: If the official format cannot express the model.
        OSError: If the folder or repository does not exist.
    """
    path = local_path(str(source), **location)
    with whole_folder(output_dir) as folder:
        if (path / TiTokPipeline.config_name).exists():
            pipeline = TiTokPipeline.from_pretrained(path)
            sampling = sampling_to_official(dict(pipeline.scheduler.config), dict(pipeline.config))
            write_official(pipeline.tokenizer, folder / "tokenizer", {})
            write_official(pipeline.transformer, folder / "generator", sampling)
        else:
            if not hasattr(AutoConfig.from_pretrained(path), "official_format"):
                raise ValueError(f"{source} is not a model of titok_hf.")
            write_official(AutoModel.from_pretrained(path), folder, {})


def write_official(model: PreTrainedModel, folder: Path, sampling: dict[str, Any]) -> None:
    """Writes a model into a folder in the official format.

    Args:
        model: The model.
        folder: The folder.
        sampling: Additional fields of `model.generator` in the official configuration.
    """
    official_format: OfficialFormat = model.config.official_format()
    config = official_format.official_config(model.config)
    folder.mkdir(exist_ok=True)
    tensors = official_format.to_official(model)
    if isinstance(model, MaskGitPreTrainedModel):
        config["model"]["generator"] |= sampling
    if config:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tensors(tensors, folder / official_format.file_name)
