"""Texts as the tokens that a model reads: how long they are, and which tokens are words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffsight.errors import PromptError

_END_OF_WORD = "</w>"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tokens:
    """The tokens of some texts, padded to one length.

    Attributes:
        pieces: Of each text its tokens as text, padding left out; marks of beginning and end are included.
        content: Which tokens are words and punctuation, shape (texts, tokens): no marks, no padding.
        end: Which token is the mark of the end, shape (texts, tokens).
    """

    pieces: tuple[tuple[str, ...], ...]
    content: Bool[Tensor, "texts tokens"]
    end: Bool[Tensor, "texts tokens"]

    def counted(self) -> Bool[Tensor, "texts tokens"]:
        """The content tokens; of a text that has none (the empty one) the mark of its end."""
        return torch.where(self.content.any(1, keepdim=True), self.content, self.end)

    def words(self, text: int) -> list[tuple[str, list[int]]]:
        """The words of a text, each with the places of its tokens."""
        words: list[tuple[str, list[int]]] = []
        open_word = False
        for place, piece in enumerate(self.pieces[text]):
            if not self.content[text, place]:
                continue
            plain = piece.removesuffix(_END_OF_WORD)
            if open_word:
                words[-1] = (words[-1][0] + plain, [*words[-1][1], place])
            else:
                words.append((plain, [place]))
            open_word = not piece.endswith(_END_OF_WORD)
        return words


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tokens:
    """Split texts as the model does.

    Args:
        tokenizer: Of CLIP's kind, whose vocabulary marks the ends of words.
        texts: Not longer than it reads: see `check_length`.
    """
    length = tokenizer.model_max_length
    content = torch.zeros(len(texts), length, dtype=torch.bool)
    end = torch.zeros(len(texts), length, dtype=torch.bool)
    pieces = []
    for row, ids in enumerate(tokenizer(list(texts)).input_ids):
        # Beginning and end are marks whatever they are called: the end may be the padding token too.
        content[row, 1 : len(ids) - 1] = True
        end[row, len(ids) - 1] = True
        pieces.append(tuple(tokenizer.convert_ids_to_tokens(ids)))
    return Tokens(pieces=tuple(pieces), content=content, end=end)


def check_length(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reader: str) -> None:
    """Refuse texts whose end the model would not read.

    Args:
        tokenizer: Of the model.
        texts: What it is to read.
        reader: The model's name.

    Raises:
        PromptError: Naming the first text that is too long, and what would be left of it.
    """
    limit = tokenizer.model_max_length
    for text, tokens in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(tokens) > limit:
            kept = tokenizer.decode(tokens[: limit - 1], skip_special_tokens=True).strip()
            raise PromptError(
                f"The prompt {text!r} has {len(tokens)} tokens, but {reader} reads {limit}: it would see only "
                f"{kept!r}. Shorten the class name or the template."
            )
