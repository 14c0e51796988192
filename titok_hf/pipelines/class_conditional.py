"""The base class of pipelines that generate images of given classes."""

import functools
import hashlib
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from ..devices import check_backend, int8_is_exact, parse_dtype, with_dtypes
from ..hub.errors import explain_hub_errors
from ..hub.location import split_location
from ..hub.publish import PublishMixin
from ..version import __version__
from .compilation import FixedBatches, compiled, faster_dtype
from .scheduling_maskgit import positive_integer

logger = logging.getLogger(__name__)

ClassLabel = int | str
# One-line modules in a saved pipeline's folder, for `trust_remote_code`.
PIPELINE_MODULE, COMPONENT_MODULE = "pipeline", "component"


def unwrapped(component: Any) -> Any:
    """Returns the module in the result of `torch.compile`, or any other component as it is."""
    return getattr(component, "_orig_mod", component)


def decode_latents(tokenizer: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Decodes latents in the tokenizer's data type."""
    return tokenizer.decode(latents.to(next(tokenizer.parameters()).dtype)).reconstruction


def image_generators(
    seed: int, numbers: Iterable[int], device: torch.device
) -> list[torch.Generator]:
    """Returns a random generator for each image, whose seed is hashed from the seed and the image's number.

    For a pipeline on CUDA they are there, too, so that it does not wait for the CPU to draw the noise: a step
    of TiTok-L-32 takes 131,072 numbers an image.
    """
    source = device if device.type == "cuda" else "cpu"
    hashes = [hashlib.sha256(f"{seed}/{number}".encode()).digest() for number in numbers]
    return [torch.Generator(source).manual_seed(int.from_bytes(h[:8]) >> 1) for h in hashes]


def random_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator]:
    """Returns a random generator for each image. A single one draws a seed for each, so that images
    do not depend on the batch.

    Raises:
        TypeError: If one is no `torch.Generator`.
    """
    if isinstance(generator, torch.Generator | None):
        source = generator.device if generator is not None else "cpu"
        seeds = torch.stack(
            [torch.randint(2**63 - 1, (), generator=generator, device=source) for _ in range(count)]
        )
        return [torch.Generator(source).manual_seed(seed) for seed in seeds.tolist()]
    each = list(generator) if isinstance(generator, list | tuple) else [generator]
    if wrong := [one for one in each if not isinstance(one, torch.Generator)]:
        raise TypeError(
            "`generator` must be a `torch.Generator`, as `torch.Generator().manual_seed(42)`, "
            f"or a list with one per image, got {wrong[0]!r}."
        )
    return each


def in_evaluation_mode(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the call of a pipeline with its networks in evaluation mode, without dropout. Afterwards each
    module is in its own mode again, since a pipeline may draw images of networks that are trained on."""

    @functools.wraps(call)
    def evaluated(pipeline: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
        networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        training = [module for part in networks for module in part.modules() if module.training]
        for network in networks:
            network.eval()
        try:
            return call(pipeline, *args, **kwargs)
        finally:
            for module in training:
                module.training = True

    return evaluated


class ClassConditionalPipeline(PublishMixin, DiffusionPipeline):
    """A pipeline of a tokenizer, a class-conditional transformer and a scheduler.

    `ClassConditionalPipeline.from_pretrained` loads a pipeline of any of its classes.

    `component_classes` are the classes of ours that its parts may have, `sampling_defaults` the
    names of the arguments of `__call__` whose defaults the pipeline stores. `compiled_dtype` says in
    which data types calls compute after `compile`, such as `"int8 and bfloat16"`. Networks in training
    mode are in evaluation mode during a call.
    """

    component_classes: ClassVar[tuple[type, ...]] = ()
    sampling_defaults: ClassVar[tuple[str, ...]] = ()
    # functions of compiled copies of the networks, by name of the component
    _compiled: dict[str, FixedBatches] | None = None
    compiled_dtype: str | None = None

    def compile(
        self,
        batch_size: int = 16,
        dtype: torch.dtype | str | None = None,
        backend: str | None = "inductor",
    ) -> Self:
        """Makes the following calls faster, which then use copies of the networks.

        The copies are compiled for batches of one size, and for twice as many with guidance; other
        numbers of images are padded or split. The pipeline's own networks stay as they are: images
        are encoded and weights saved in their own precision. With `to`, which also leads back to
        them, or another network the copies are dropped: call it again. A pickled or copied pipeline
        has none.

        Args:
            batch_size: Number of images that the networks compute at once.
            dtype: Data type of the copies, such as `"float32"`. By default bfloat16 if a matrix
                product is faster in it on this device, else their own; a line of the log says which.
                `"int8"` computes the linear layers of transformer blocks in int8 and the rest in
                that default, on a CPU.
            backend: Backend of `torch.compile`. `None` leaves the copies uncompiled, which starts at
                once, and on a CPU is about as fast in bfloat16.

        Returns:
            The pipeline.

        Raises:
            OSError: If the backend cannot compile here.
            ValueError: If the batch size or the data type is not valid.
        """
        device, own = self.transformer.device, self.transformer.dtype
        positive_integer(batch_size, "batch_size")
        int8 = dtype == "int8"
        if int8 and (device.type != "cpu" or not int8_is_exact()):
            where = "this processor has none" if device.type == "cpu" else f"this is {device}"
            raise ValueError(
                "The dtype 'int8' needs a CPU with instructions for int8, such as AVX-512 VNNI, and "
                f"{where}: choose another dtype or device."
            )
        if dtype is None or int8:
            dtype = faster_dtype(device) if own == torch.float32 else own
        dtype = parse_dtype(dtype) if isinstance(dtype, str) else dtype
        if backend is not None:
            check_backend(backend, device)
        fixed = {"batch_size": batch_size, "dtype": dtype, "backend": backend, "int8": int8}
        self._compiled = {
            name: compiled(network, function, **fixed)
            for name, (network, function) in self.networks().items()
        }
        name = str(dtype).removeprefix("torch.")
        self.compiled_dtype = f"int8 and {name}" if int8 else name
        logger.warning("The following calls compute in %s.", self.compiled_dtype)
        return self

    def drop_copies(self) -> None:
        """Lets calls use the networks themselves again, not copies made by `compile`."""
        if self._compiled is not None:
            self._compiled = self.compiled_dtype = None
            logger.warning("The pipeline is no longer compiled: call `compile` again.")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Same as in diffusers; drops the copies of `compile`."""
        self.drop_copies()
        return super().to(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Same as in diffusers; another network drops the copies of `compile`."""
        if isinstance(value, nn.Module):
            self.drop_copies()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: all but the copies of `compile`."""
        return self.__dict__ | {"_compiled": None, "compiled_dtype": None}

    def networks(self) -> dict[str, tuple[nn.Module, Callable[..., torch.Tensor]]]:
        """Returns the networks of a call, each with the function of it and of tensors that is computed."""
        raise NotImplementedError

    def network(self, name: str) -> Callable[..., torch.Tensor]:
        """Returns the function of a network, compiled if `compile` was called."""
        if self._compiled is not None:
            return self._compiled[name]
        network, function = self.networks()[name]
        return partial(function, network)

    def onload_tokenizer(self) -> None:
        """Moves the tokenizer to the device after `enable_model_cpu_offload`, whose hooks run only before
        `forward`, not before `decode`."""
        if hook := getattr(self.tokenizer, "_hf_hook", None):
            hook.pre_forward(self.tokenizer)

    def stream(
        self,
        class_labels: Iterable[ClassLabel],
        batch_size: int = 16,
        seed: int = 0,
        numbers: Iterable[int] | None = None,
        **arguments: Any,
    ) -> Iterator[Any]:
        """Yields an image for each of any number of labels, in order, with the memory of a batch.

        An image depends on the seed and its number, whatever the batch or the process. The noise of
        CUDA differs from that of other devices.

        Args:
            class_labels: Classes, by id or name.
            batch_size: Number of images generated at once.
            seed: Random seed.
            numbers: Number of each image, for example if a process makes every second one; from 0 by
                default.
            arguments: Further arguments of the call, such as `guidance_scale` and `output_type`.

        Raises:
            ValueError, TypeError: See the call; also if there are not as many numbers as labels.
        """
        positive_integer(batch_size, "batch_size")
        if fixed := {"generator", "num_images_per_label", "return_dict"} & arguments.keys():
            raise TypeError(
                f"`stream` takes no `{min(fixed)}`: it yields an image for each label, drawn from "
                "`seed` and its number."
            )
        single = not isinstance(class_labels, Iterable)
        if single or isinstance(class_labels, str | torch.Tensor | np.ndarray):
            class_labels = self.label_ids(class_labels)
        numbered = enumerate(class_labels)
        if numbers is not None:
            numbered = zip(numbers, class_labels, strict=True)
        while batch := list(itertools.islice(numbered, batch_size)):
            generators = image_generators(
                seed, [number for number, _ in batch], self._execution_device
            )
            labels = [label for _, label in batch]
            yield from self(labels, generator=generators, **arguments).images

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str = "", **kwargs: Any
    ) -> Self:
        """Same as in diffusers, from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: The folder or repository.
            subfolder: Subfolder of the pipeline.
            kwargs: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` find a
                repository; the rest, such as components and `dtype`, goes to diffusers.

        Raises:
            OSError: If the repository does not exist, or the connection broke.
            ValueError: If it holds no pipeline, or the pipeline's parts do not fit each other.
        """
        folder = Path(pretrained_model_name_or_path)
        location, kwargs = split_location(with_dtypes(kwargs))
        if not folder.is_dir():
            if str(folder).count("/") > 1 or str(pretrained_model_name_or_path).startswith(
                (".", "/", "~")
            ):
                raise FileNotFoundError(f"There is no folder {pretrained_model_name_or_path}.")
            repo_id, prefix = (
                str(pretrained_model_name_or_path),
                f"{subfolder}/" if subfolder else "",
            )
            with explain_hub_errors(repo_id):
                # the index first, so that without one nothing large is downloaded
                folder = Path(
                    snapshot_download(repo_id, allow_patterns=prefix + cls.config_name, **location)
                )
                if (folder / subfolder / cls.config_name).exists():
                    folder = Path(
                        snapshot_download(repo_id, allow_patterns=f"{prefix}*", **location)
                    )
        if not (folder / subfolder / cls.config_name).exists():
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no pipeline, which would have a "
                f"{cls.config_name}. From a tokenizer and a generator `titok convert` or "
                f"`{cls.__name__}(tokenizer, transformer, scheduler)` make one."
            )
        if cls is ClassConditionalPipeline:
            name = json.loads((folder / subfolder / cls.config_name).read_text())["_class_name"]
            name = name[-1] if isinstance(name, list) else name
            known = {pipeline.__name__: pipeline for pipeline in cls.__subclasses__()}
            if name not in known:
                raise ValueError(
                    f"{pretrained_model_name_or_path} is a {name}, not one of {', '.join(known)}."
                )
            cls = known[name]
        try:
            return super().from_pretrained(folder / subfolder, **kwargs)
        except OSError as error:
            raise OSError(
                f"The pipeline in {pretrained_model_name_or_path} is incomplete: {error}"
            ) from error

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Same as in diffusers, with the real modules in place of the folder's one-line modules."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        unknown = {name for name in config if not name.startswith("_")} - set(
            inspect.signature(cls).parameters
        )
        known = {component.__name__: component for component in cls.component_classes}
        for name, value in config.items():
            if isinstance(value, list) and value[0] == COMPONENT_MODULE:
                if value[1] in known:
                    value[0] = known[value[1]].__module__
                else:
                    unknown.add(f"{name}={value[1]}")
        if unknown:
            raise ValueError(
                f"This pipeline has parts or fields that titok_hf {__version__} does not know: "
                f"{', '.join(sorted(unknown))}. Install a newer version."
            )
        return loaded

    def complete_folder(self, folder: Path) -> None:
        """Writes the one-line modules with which `DiffusionPipeline.from_pretrained(...,
        trust_remote_code=True)` loads the folder, too."""
        index = json.loads((folder / self.config_name).read_text())
        index.pop("_name_or_path", None)  # a local path
        index["_class_name"] = [PIPELINE_MODULE, type(self).__name__]
        (folder / f"{PIPELINE_MODULE}.py").write_text(
            f"from titok_hf import {type(self).__name__}\n"
        )
        for name, component in self.components.items():
            if not isinstance(unwrapped(component), self.component_classes):
                continue  # a class of diffusers, or none
            class_name = type(unwrapped(component)).__name__
            index[name] = [COMPONENT_MODULE, class_name]
            (folder / name / f"{COMPONENT_MODULE}.py").write_text(
                f"from titok_hf import {class_name}\n"
            )
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    def label_ids(
        self, class_labels: ClassLabel | Sequence[ClassLabel] | torch.Tensor
    ) -> list[int]:
        """Returns the ids of classes given by id or name.

        An integer is an id. A string is a whole name in `id2label`, else an id, else the only name
        that has it as one of its comma-separated parts.

        Raises:
            ValueError: If an id is out of range, or a name unknown or shared by several classes.
            TypeError: If a label is neither an integer nor a string.
        """
        if isinstance(class_labels, torch.Tensor | np.ndarray):
            class_labels = class_labels.ravel().tolist()
        elif isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        config, ids = self.transformer.config, []
        for label in class_labels:
            if isinstance(label, str):
                names = config.id2label
                found = [index for index, name in names.items() if label == name]
                if not found and label in map(str, names):
                    found = [int(label)]
                found = found or [
                    index
                    for index, name in names.items()
                    if label in (part.strip() for part in name.split(","))
                ]
                if len(found) != 1:
                    near = get_close_matches(label, names.values(), n=10, cutoff=0.4)
                    shown = ", ".join(map(repr, near or list(names.values())[:10]))
                    problem = (
                        f"names the classes {found}: pass one of these ids"
                        if found
                        else "is not among them"
                    )
                    raise ValueError(
                        f"`class_labels` must be ids in [0, {config.num_labels}) or names such as "
                        f"{shown}; {label!r} {problem}."
                    )
                ids.append(found[0])
            elif isinstance(label, bool) or not isinstance(label, int | np.integer):
                raise TypeError(f"`class_labels` must be integers or class names, got {label!r}.")
            elif not 0 <= label < config.num_labels:
                raise ValueError(
                    f"`class_labels` must be in [0, {config.num_labels}), got {label}."
                )
            else:
                ids.append(int(label))
        return ids

    def repeated_labels(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | torch.Tensor,
        num_images_per_label: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Returns the label of each image to generate, `(B,)`.

        Raises:
            ValueError, TypeError: See `label_ids`; also if there is no label.
        """
        labels = torch.tensor(self.label_ids(class_labels), device=device)
        if len(labels) == 0:
            raise ValueError("`class_labels` must name at least one class, got none.")
        return labels.repeat_interleave(num_images_per_label)


__all__ = [
    "ClassConditionalPipeline",
    "ClassLabel",
    "image_generators",
    "in_evaluation_mode",
    "random_generators",
    "unwrapped",
]
