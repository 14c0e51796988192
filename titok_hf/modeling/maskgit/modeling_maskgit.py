"""The masked generators: predict all codes from partly masked codes and a class label."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ...hub.provenance import inherit_provenance
from ..checks import check_ids
from ..loading import CheckedLoadingMixin
from ..transformer import TransformerBlock
from .configuration_maskgit import MaskGitConfig, MaskGitUViTConfig


@dataclass
class MaskGitOutput(ModelOutput):
    """Result of a masked generator.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Masked-token loss, if there are target codes.
        logits (`torch.FloatTensor` of shape `(B, N, codebook_size)`):
            Logits of every token's code.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


def masked_token_loss(
    logits: torch.Tensor,
    target_codes: torch.Tensor,
    masked: torch.Tensor,
    label_smoothing: float,
    unmasked_weight: float,
) -> torch.Tensor:
    """Cross-entropy averaged over tokens; those not masked are weighted by `unmasked_weight`.

    Args:
        logits: `(B, N, codebook_size)`.
        target_codes: `(B, N)` in [0, codebook_size).
        masked: `(B, N)`, true where the model saw the mask token.
        label_smoothing: Share of the target's probability spread over all codes.
        unmasked_weight: Weight of tokens that were not masked; masked ones have weight 1.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        target_codes.flatten().long(),
        label_smoothing=label_smoothing,
        reduction="none",
    )  # (B * N,)
    weights = torch.where(masked.flatten(), 1.0, unmasked_weight)
    return (losses * weights).sum() / weights.sum().clamp_min(1e-8)


class MaskGitPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    """Base class: maps `[label, codes]`, one sequence of ids, through a backbone to logits of the
    codes.

    The vocabulary is the codes, the mask token, the labels and "no class", in this order; `vocabulary`
    is the name of its embedding.
    """

    vocabulary: ClassVar[str]
    config: MaskGitConfig
    config_class = MaskGitConfig
    base_model_prefix = "generator"
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["TransformerBlock", "BertLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def backbone(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids `(B, 1 + N)` to hidden states `(B, 1 + N, W)`."""
        raise NotImplementedError

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """Returns a copy of the generator for other classes, to fine-tune it on them.

        Classes of the same name keep their embedding, new ones get that of "no class".
        """
        old, config = self.config, copy.deepcopy(self.config)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: label for label, name in enumerate(class_names)}
        model = type(self)(config).to(self.dtype)
        inherit_provenance(model, self)
        known = {name: label for label, name in old.id2label.items()}
        labels = [*(known.get(name, old.null_label) for name in class_names), old.null_label]
        first = old.codebook_size + 1
        weights = self.state_dict()
        weights[self.vocabulary] = weights[self.vocabulary][
            [*range(first), *(first + label for label in labels)]
        ]
        model.load_state_dict(weights)
        return model.to(self.device).eval()

    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor,
        target_codes: torch.Tensor | None = None,
        drop_labels: torch.Tensor | None = None,
    ) -> MaskGitOutput:
        """Predicts the logits of every token's code.

        The range of the ids is not checked, which would synchronize with the device.

        Args:
            codes: `(B, N)` in [0, codebook_size]; `codebook_size` (`config.mask_token_id`) is a
                masked token.
            class_labels: `(B,)` in [0, num_labels]; `num_labels` (`config.null_label`) is "no
                class".
            target_codes: `(B, N)` in [0, codebook_size), for the loss.
            drop_labels: `(B,)`, true for labels to replace by "no class"; if not given, training
                drops each label with probability `config.label_dropout`.
        """
        config = self.config
        check_ids(codes, "codes", ("batch", config.num_tokens))
        check_ids(class_labels, "class_labels", (len(codes),))
        # drop labels, for classifier-free guidance
        if drop_labels is None and self.training:
            drop_labels = (
                torch.rand(class_labels.shape, device=class_labels.device) < config.label_dropout
            )
        if drop_labels is not None:
            class_labels = class_labels.masked_fill(drop_labels, config.null_label)
        # labels follow the codes and the mask token in the vocabulary
        label_ids = config.codebook_size + 1 + class_labels
        hidden_states = self.backbone(
            torch.cat([label_ids[:, None], codes], dim=1)
        )  # (B, 1 + N, W)
        logits = self.lm_head(hidden_states[:, 1:])  # (B, N, codebook_size)
        loss = None
        if target_codes is not None:
            check_ids(target_codes, "target_codes", tuple(codes.shape))
            loss = masked_token_loss(
                logits,
                target_codes,
                codes == config.mask_token_id,
                label_smoothing=config.label_smoothing,
                unmasked_weight=config.unmasked_weight,
            )
        return MaskGitOutput(loss=loss, logits=logits)


class MaskGitModel(MaskGitPreTrainedModel):
    """The bidirectional transformer of MaskGIT (arXiv 2202.04200) in TiTok's size: a BERT over 1D
    tokens."""

    vocabulary = "bert.embeddings.word_embeddings.weight"

    def __init__(self, config: MaskGitConfig):
        super().__init__(config)
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.codebook_size + 1 + config.num_labels + 1,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.hidden_dropout,
                attention_probs_dropout_prob=config.attention_dropout,
                max_position_embeddings=1 + config.num_tokens,
                pad_token_id=None,  # 0 is a code like any other
                initializer_range=config.initializer_range,
                attn_implementation=self.config._attn_implementation,
            ),
            add_pooling_layer=False,
        )
        self.lm_head = nn.Linear(config.hidden_size, config.codebook_size)
        self.post_init()

    def backbone(self, ids: torch.Tensor) -> torch.Tensor:
        return self.bert(ids).last_hidden_state

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)


class MaskGitUViTModel(MaskGitPreTrainedModel):
    """The generator with long skip connections (U-ViT, arXiv 2209.12152) of TiTok-S-128."""

    config: MaskGitUViTConfig
    config_class = MaskGitUViTConfig
    vocabulary = "embeddings.weight"

    def __init__(self, config: MaskGitUViTConfig):
        super().__init__(config)

        def block(skip: bool = False) -> TransformerBlock:
            return TransformerBlock(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                qkv_bias=False,
                skip=skip,
            )

        half = config.num_hidden_layers // 2
        self.embeddings = nn.Embedding(
            config.codebook_size + 1 + config.num_labels + 1, config.hidden_size
        )
        self.position_embedding = nn.Parameter(
            torch.empty(1, 1 + config.num_tokens, config.hidden_size)
        )
        self.in_blocks = nn.ModuleList(block() for _ in range(half))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.codebook_size)
        self.post_init()

    def backbone(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids) + self.position_embedding  # (B, 1 + N, W)
        skips = []  # long skip connections, from the last in-block to the first out-block
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.norm(x)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Embedding):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, MaskGitUViTModel):
            init.trunc_normal_(module.position_embedding, std=self.config.initializer_range)


__all__ = ["MaskGitModel", "MaskGitOutput", "MaskGitUViTModel"]
