"""Text tokenizers for VTP's text encoder, which reads the features of a text at its last token."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def with_end_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Makes every text end with the token of the largest id, where VTP reads its features.

    CLIP's tokenizer does so already. Others get a new token, which replaces those that they add
    around a text.

    Args:
        tokenizer: A fast tokenizer, which is changed.

    Raises:
        ValueError: If it is not a fast tokenizer.
    """
    if tokenizer("a")["input_ids"][-1] != len(tokenizer) - 1:
        if not tokenizer.is_fast:
            raise ValueError(
                f"A {type(tokenizer).__name__} does not end texts with the token of the largest id, "
                "and cannot be changed because it is not a fast tokenizer: choose another one."
            )
        known = tokenizer.get_vocab()
        end = (
            END if known.get(END, len(tokenizer) - 1) == len(tokenizer) - 1 else "<|endofcaption|>"
        )
        tokenizer.add_special_tokens({"eos_token": end})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # tokens after the end have no influence
    return tokenizer


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer, which knows every text, in lower case as CLIP's.

    Args:
        texts: The texts.
        vocab_size: Largest number of tokens; at least 257, for the bytes and the end of a text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_end_token(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


__all__ = ["train_text_tokenizer", "with_end_token"]
