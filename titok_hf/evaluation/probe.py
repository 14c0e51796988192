"""Probes of representations: classifiers on frozen features."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..data.decoding import decoder_for
from ..modeling.diffusers_tokenizer import DiffusersTokenizer
from ..modeling.titok import TiTokImageProcessor, TiTokModel
from ..modeling.vtp.modeling_vtp import VTPPreTrainedModel
from ..progress import ProgressBar, index_batches, working
from .image_sources import Fingerprint, decode_row, encoded_images, to_uint8
from .metrics.standard_error import Estimate

TokenFeature = Literal["tokens", "mean_token", "unquantized", "encoder"]
WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TEMPERATURE = 0.07


@torch.no_grad()
def token_features(
    tokenizer: PreTrainedModel | DiffusersTokenizer,
    batches: Iterable[torch.Tensor],
    features: Sequence[TokenFeature] = ("tokens", "mean_token"),
) -> dict[str, torch.Tensor]:
    """Computes features of a tokenizer for a probe; each image is encoded once.

    Args:
        tokenizer: A tokenizer of any family.
        batches: Images `(B, 3, H, W)` in the range that the tokenizer takes.
        features: Names of the features.

            - `"tokens"`: all latents of an image, flattened, `(n, N * C)` or `(n, C * h * w)`;
            - `"mean_token"`: the mean of the latents over tokens or positions, `(n, C)`;
            - `"unquantized"`: same as `"tokens"`, before the nearest codes are looked up; discrete
              tokenizers only;
            - `"encoder"`: the mean of the latent tokens after the encoder's last layer norm, before
              their projection to latents, `(n, encoder_hidden_size)`; TiTok only, whose paper (arXiv
              2406.07550) probes the frozen encoder.

    Returns:
        The features by name, in float32 on the CPU.

    Raises:
        ValueError: If the tokenizer does not have one of the features.
    """
    if unknown := set(features) - set(get_args(TokenFeature)):
        raise ValueError(
            f"Features are {', '.join(get_args(TokenFeature))}; got {', '.join(sorted(unknown))}."
        )
    if "encoder" in features and not isinstance(tokenizer, TiTokModel):
        raise ValueError(
            f"The feature 'encoder' is that of a TiTokModel, got a {type(tokenizer).__name__}."
        )
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in features}
    with ExitStack() as hooks:
        if "encoder" in features:
            # a hook, since `encode` returns only the projected latents
            hooks.enter_context(
                tokenizer.encoder.norm_out.register_forward_hook(
                    lambda module, inputs, hidden: collected["encoder"].append(
                        hidden.float().mean(1).cpu()
                    )  # (B, W)
                )
            )
        for images in batches:
            encoded = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
            latents = encoded.latents.float()  # (B, N, C) or (B, C, h, w)
            if "tokens" in features:
                collected["tokens"].append(latents.flatten(1).cpu())
            if "mean_token" in features:
                means = latents.mean(1) if latents.ndim == 3 else latents.mean((2, 3))  # (B, C)
                collected["mean_token"].append(means.cpu())
            if "unquantized" in features:
                if encoded.unquantized is None:
                    raise ValueError(
                        "The feature 'unquantized' is that of a discrete tokenizer; this "
                        f"{type(tokenizer).__name__} "
                        "is continuous."
                    )
                collected["unquantized"].append(encoded.unquantized.float().flatten(1).cpu())
    return {name: torch.cat(parts) for name, parts in collected.items()}


@torch.no_grad()
def vision_features(
    model: VTPPreTrainedModel,
    batches: Iterable[torch.Tensor],
    num_blocks: int = 4,
    bottleneck: bool = False,
) -> torch.Tensor:
    """Computes features of a VTP for a probe: the CLS tokens of its last blocks and the mean of its
    last patch tokens.

    Args:
        model: A VTP.
        batches: Normalized images `(B, 3, H, W)`.
        num_blocks: Number of blocks whose CLS tokens are used. Published probes of VTP report the
            better of 1 and 4.
        bottleneck: Whether to use the mean of the bottleneck's latents instead.

    Returns:
        `(n, (num_blocks + 1) * D)`, or `(n, latent_dim)`, in float32 on the CPU.
    """
    depth = model.config.vision_num_hidden_layers
    if not bottleneck and not 1 <= num_blocks <= depth:
        raise ValueError(
            f"`num_blocks` must be from 1 to the {depth} blocks of the model, got {num_blocks}."
        )
    features = []
    for images in batches:
        images = images.to(model.device)
        if bottleneck:
            features.append(model.encode(images).latents.flatten(2).mean(-1).float().cpu())
            continue
        vision = model.get_vision_features(images, output_hidden_states=True)
        cls_tokens = [hidden[:, 0] for hidden in vision.hidden_states[-num_blocks:]]
        features.append(torch.cat([*cls_tokens, vision.patch_tokens.mean(1)], dim=-1).float().cpu())
    return torch.cat(features)


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> dict[str, float | None]:
    """Measures the accuracy of a logistic regression on standardized features.

    The features are fixed, while MAE's probes (arXiv 2111.06377), which TiTok's paper follows,
    normalize by batch and train on augmented crops, so compare only figures of the same probe. The
    weight decay is chosen on a random fifth of the training features, never on the test features.

    Args:
        train_features, test_features: `(n, D)`.
        train_labels, test_labels: `(n,)` in [0, classes).
        weight_decays: Candidates for the weight decay.
        seed: Random seed of the split.

    Returns:
        `accuracy` in [0, 1] on the test features, its `standard_error` over them (`None` if there
        is only one), `balanced_accuracy`, the mean over classes, and the chosen `weight_decay`.

    Raises:
        ValueError: If there is only one class, or there are fewer than 5 training features.
    """
    check_features(train_features, train_labels)
    check_features(test_features, test_labels)
    if len(train_features) < 5:
        raise ValueError(
            "A linear probe needs at least 5 training features, a fifth of which chooses the "
            f"weight decay, got {len(train_features)}."
        )
    if train_labels.unique().numel() < 2:
        raise ValueError("A probe needs at least two classes, got one.")
    # test features are standardized by the training features, too
    mean, std = train_features.mean(0), train_features.std(0).clamp_min(1e-6)
    train_features, test_features = (train_features - mean) / std, (test_features - mean) / std
    order = torch.randperm(len(train_features), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    num_classes = int(train_labels.max()) + 1

    def accuracies(
        probe: nn.Linear, features: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, float | None]:
        return accuracies_of(probe(features).argmax(-1) == labels, labels)

    with ProgressBar("linear probe", len(weight_decays) + 1, "fits") as bar:

        def held_out_accuracy(decay: float) -> float:
            probe = fit(train_features[rest], train_labels[rest], num_classes, decay)
            bar.update()
            return accuracies(probe, train_features[held_out], train_labels[held_out])["accuracy"]

        chosen = max(weight_decays, key=held_out_accuracy)
        probe = fit(train_features, train_labels, num_classes, chosen)
        bar.update()
    return accuracies(probe, test_features, test_labels) | {"weight_decay": chosen}


def accuracies_of(correct: torch.Tensor, labels: torch.Tensor) -> dict[str, float | None]:
    """Returns `accuracy`, its `standard_error` and `balanced_accuracy` of predictions `(n,)` that are
    correct or not."""
    measured = Estimate.mean(correct)
    of_classes = [correct[labels == label].double().mean() for label in labels.unique()]
    return {
        "accuracy": measured.value,
        "standard_error": measured.standard_error,
        "balanced_accuracy": float(torch.stack(of_classes).mean()),
    }


def check_features(features: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises `ValueError` unless the features are finite and each has a label."""
    if len(features) != len(labels):
        raise ValueError(
            f"There must be a label for each of {len(features)} features, got {len(labels)}."
        )
    if wrong := int((~features.isfinite().all(-1)).sum()):
        raise ValueError(
            f"Features must be finite, got NaN or infinity in {wrong} of {len(features)}."
        )


def fit(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, weight_decay: float
) -> nn.Linear:
    """Fits a linear classifier: minimizes cross-entropy plus `weight_decay / 2` times the squared
    weights."""
    probe = nn.Linear(features.shape[1], num_classes, device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            F.cross_entropy(probe(features), labels)
            + weight_decay / 2 * probe.weight.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe.requires_grad_(False)


@working("nearest neighbors")
def knn_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> dict[str, float | None]:
    """Measures the accuracy of a vote of the nearest training features, weighted by similarity.

    Each of the `k` nearest votes for its class with weight `exp(cosine / temperature)`, as in
    DINO's evaluation (arXiv 2104.14294, `eval_knn.py`), whose published figures use 20 and 0.07.

    Args:
        train_features, test_features: `(n, D)`.
        train_labels, test_labels: `(n,)` in [0, classes).
        k: Number of training features that vote.
        temperature: Temperature of the weights.

    Returns:
        `accuracy` in [0, 1] on the test features, its `standard_error` over them (`None` if there
        is only one), and `balanced_accuracy`, the mean over classes.
    """
    check_features(train_features, train_labels)
    check_features(test_features, test_labels)
    if not 1 <= k <= len(train_features):
        raise ValueError(
            f"`k` must be from 1 to the {len(train_features)} training features, got {k}."
        )
    train_features, test_features = (
        F.normalize(train_features, dim=-1),
        F.normalize(test_features, dim=-1),
    )
    num_classes = int(train_labels.max()) + 1
    correct = []
    # 256 rows of similarities at a time: 1.3 GB for ImageNet's training images
    for features, labels in zip(test_features.split(256), test_labels.split(256), strict=True):
        similarities, nearest = (features @ train_features.T).topk(k)  # (B, k)
        votes = features.new_zeros(len(features), num_classes)
        votes.scatter_add_(
            1, train_labels[nearest], (similarities / temperature).exp()
        )  # (B, classes)
        correct.append(votes.argmax(-1) == labels)
    return accuracies_of(torch.cat(correct), test_labels)


def probe_tokenizer(
    tokenizer: PreTrainedModel | DiffusersTokenizer,
    processor: TiTokImageProcessor,
    train: Dataset,
    test: Dataset,
    image_column: str = "image",
    label_column: str = "label",
    features: Sequence[TokenFeature] = ("tokens", "mean_token"),
    batch_size: int = 64,
    k: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures by probes how much a tokenizer's features tell about the classes of images.

    Args:
        tokenizer, processor: A tokenizer of any family and its image processor, see
            `load_tokenizer`.
        train: Images with labels to train the probes on.
        test: Images with labels to measure the probes on.
        image_column, label_column: Columns of `train` and `test`.
        features: Features to probe, see `token_features`.
        batch_size: Number of images encoded at once.
        k: Number of neighbors that vote, see `knn_probe`.
        seed: Random seed of the split that chooses the weight decay, see `linear_probe`.

    Returns:
        Fields that can be written as JSON: `processor`, the class and settings of the image
        processor; `train` and `test`, each with `num_images`, `fingerprint` (of the images from the
        processor in uint8, see `Fingerprint`) and `labels_sha256` (of the class numbers in the
        order of the images, int64); `num_classes`; `majority_accuracy`, the accuracy of always
        predicting the most frequent class of the training images; `linear`, the tried
        `weight_decays` and the `seed`; `nearest_neighbors`, `k` and `temperature`; and `features`,
        with `dimension`, `linear_accuracy`, `linear_standard_error`, `weight_decay` (see
        `linear_probe`), `knn_accuracy` and `knn_standard_error` for each name. A standard error is
        `None` if there is only one test image.

    Raises:
        ValueError: If there is only one class, a test image has a class that no training image has,
            there are no test images, or fewer training images than `k` or 5.
    """
    for split, dataset in (("training", train), ("test", test)):
        if missing := {image_column, label_column} - set(dataset.column_names):
            raise ValueError(
                f"The {split} images have no column {', '.join(sorted(missing))} but "
                f"{', '.join(dataset.column_names)}."
            )
    classes = {label: index for index, label in enumerate(sorted(set(train[label_column])))}
    if len(classes) < 2:
        raise ValueError(
            f"A probe needs training images of at least two classes, got {len(classes)}."
        )
    if unknown := set(test[label_column]) - classes.keys():
        raise ValueError(
            f"The test images have a class that no training image has: {sorted(unknown)[0]!r}."
        )
    if not len(test):
        raise ValueError("There are no test images.")
    if len(train) < 5:
        raise ValueError(f"A linear probe needs at least 5 training images, got {len(train)}.")
    if not 1 <= k <= len(train):
        raise ValueError(f"`k` must be from 1 to the {len(train)} training images, got {k}.")

    def batches(dataset: Dataset, fingerprint: Fingerprint) -> Iterator[torch.Tensor]:
        encoded, decode = encoded_images(dataset, image_column), decoder_for(processor)
        for indices in index_batches(len(dataset), batch_size, "features"):
            images = [decode_row(encoded[i][image_column], i, decode) for i in indices.tolist()]
            pixel_values = processor(images, return_tensors="pt")["pixel_values"]  # (B, 3, H, W)
            fingerprint.update(to_uint8(processor.postprocess(pixel_values, "pt"), "round"))
            yield pixel_values

    labels, encoded, described = [], [], []
    for dataset in (train, test):
        fingerprint = Fingerprint()
        labels.append(torch.tensor([classes[label] for label in dataset[label_column]]))
        encoded.append(token_features(tokenizer, batches(dataset, fingerprint), features))
        described.append(
            {
                "num_images": len(dataset),
                "fingerprint": fingerprint.compute([fingerprint.total]),
                "labels_sha256": hashlib.sha256(labels[-1].numpy().tobytes()).hexdigest(),
            }
        )
    (train_labels, test_labels), (train_features, test_features) = labels, encoded
    result = {
        "processor": json.loads(processor.to_json_string()),
        "train": described[0],
        "test": described[1],
        "num_classes": len(classes),
        "majority_accuracy": float(
            (test_labels == train_labels.bincount().argmax()).double().mean()
        ),
        "linear": {"weight_decays": list(WEIGHT_DECAYS), "seed": seed},
        "nearest_neighbors": {"k": k, "temperature": TEMPERATURE},
        "features": {},
    }
    for name in features:
        linear = linear_probe(
            train_features[name], train_labels, test_features[name], test_labels, seed=seed
        )
        neighbors = knn_probe(
            train_features[name], train_labels, test_features[name], test_labels, k=k
        )
        result["features"][name] = {
            "dimension": train_features[name].shape[1],
            "linear_accuracy": linear["accuracy"],
            "linear_standard_error": linear["standard_error"],
            "weight_decay": linear["weight_decay"],
            "knn_accuracy": neighbors["accuracy"],
            "knn_standard_error": neighbors["standard_error"],
        }
    return result
