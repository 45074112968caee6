"""T5 as PixArt and DeepFloyd IF are told their prompts: in lower case, padded to one length, the padding masked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5TokenizerFast

from diffsight.backbones.opened import Opened
from diffsight.backbones.text import Tokens, check_length, tokenize_pieces
from diffsight.errors import ModelError

_TOGETHER = 16  # Prompts at once: T5-XXL's attention is not fused, and has 64 heads.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class T5Reader:
    """Reads prompts with T5.

    Prompts are stripped and put in lower case, as diffusers' pipelines do it where the libraries beautifulsoup4 and
    ftfy are missing. With them, a pipeline also applies rules that were made for captions from the web, and that delete
    names such as "A340" from a prompt: no number here depends on which libraries are installed.

    Attributes:
        encoder: T5.
        tokenizer: T5's own.
        length: Tokens that the denoiser is given; T5 itself would read 512.
    """

    encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    length: int

    @property
    def said(self) -> str:
        """What `Backbone.identity` has to say of it."""
        return f"T5, {self.length} tokens, lower case"

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], reader: str) -> tuple[Float[Tensor, "b n width"], Int[Tensor, "b n"]]:
        """Encode prompts.

        Args:
            prompts: At least one.
            reader: The model's name.

        Returns:
            The states of all tokens, and the mask: 1 for tokens of the prompt and its end, 0 for padding.

        Raises:
            PromptError: If a prompt has more tokens than the denoiser is given.
        """
        read = [_prepared(prompt) for prompt in prompts]
        check_length(self.tokenizer, read, reader, self.length)
        tokens = self.tokenizer(read, padding="max_length", max_length=self.length, return_tensors="pt")
        ids, mask = (x.to(self.encoder.device) for x in (tokens.input_ids, tokens.attention_mask))
        groups = zip(ids.split(_TOGETHER), mask.split(_TOGETHER), strict=True)
        states = [self.encoder(input_ids=part, attention_mask=kept).last_hidden_state for part, kept in groups]
        return torch.cat(states), mask

    def tokens(self, texts: Sequence[str], reader: str) -> Tokens:
        """Split texts as `encode` does.

        Raises:
            PromptError: As `encode`.
        """
        read = [_prepared(text) for text in texts]
        if not read:
            none = torch.zeros(0, self.length, dtype=torch.bool)
            return Tokens(pieces=(), content=none, end=none)
        check_length(self.tokenizer, read, reader, self.length)
        return tokenize_pieces(self.tokenizer, read, self.length)


def open_t5(opened: Opened, length: int) -> T5Reader:
    """The T5 of a folder.

    Args:
        opened: The folder.
        length: Tokens that the pipeline gives to its denoiser.

    Raises:
        ModelError: If the folder has no text encoder, or no vocabulary that can be read.
    """
    if not (opened.has("text_encoder") and opened.has("tokenizer")):
        raise ModelError(
            f"{opened.folder} has no text encoder or no tokenizer: it cannot be told its prompts. Put those of the "
            "original pipeline into it (text_encoder, tokenizer, and their entries in model_index.json)."
        )
    return T5Reader(
        encoder=opened.text_encoder(T5EncoderModel, large=True),
        tokenizer=opened.tokenizer(T5TokenizerFast),
        length=length,
    )


def _prepared(prompt: str) -> str:
    return prompt.lower().strip()
