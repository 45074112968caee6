"""Texts as the tokens that a model reads: how long they are, and which tokens are words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise, takewhile
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffsight.errors import PromptError

_END_OF_WORD = "</w>"
_SPACE = "▁"  # Not an underscore: SentencePiece's mark of the beginning of a word.


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
    for row, ids in enumerate(tokenizer(spelled(tokenizer, texts)).input_ids):
        # Beginning and end are marks whatever they are called: the end may be the padding token too.
        content[row, 1 : len(ids) - 1] = True
        end[row, len(ids) - 1] = True
        pieces.append(_whole_words(tokenizer, tokenizer.convert_ids_to_tokens(ids)))
    return Tokens(pieces=tuple(pieces), content=content, end=end)


def tokenize_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Tokens:
    """Split texts as a model with T5's kind of tokenizer does: one whose vocabulary marks the beginnings of words.

    Args:
        tokenizer: Of SentencePiece's kind.
        texts: Not longer than the model reads: see `check_length`.
        length: How many tokens the model reads.
    """
    content = torch.zeros(len(texts), length, dtype=torch.bool)
    end = torch.zeros(len(texts), length, dtype=torch.bool)
    marks = [mark for mark in tokenizer.all_special_ids if mark != tokenizer.unk_token_id]
    pieces = []
    for row, ids in enumerate(tokenizer(list(texts)).input_ids):
        content[row, : len(ids)] = torch.tensor([token not in marks for token in ids])
        end[row, len(ids) - 1] = True
        split = tokenizer.convert_ids_to_tokens(ids)
        last = [i + 1 == len(ids) or ids[i + 1] in marks or split[i + 1].startswith(_SPACE) for i in range(len(ids))]
        plain = (piece.removeprefix(_SPACE) for piece in split)
        pieces.append(tuple(piece + _END_OF_WORD if ends else piece for piece, ends in zip(plain, last, strict=True)))
    return Tokens(pieces=tuple(pieces), content=content, end=end)


def spelled(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Write each token of a textual inversion with several vectors as these: ``<dog>`` as ``<dog> <dog>_1``.

    Diffusers' pipelines do the same (``maybe_convert_prompt``). Texts without such tokens stay as they are.
    """
    added = _added(tokenizer)
    several = sorted((token for token in added if f"{token}_1" in added), key=len, reverse=True)
    if not several:
        return list(texts)
    vectors = {token: [token, *takewhile(added.__contains__, (f"{token}_{i}" for i in count(1)))] for token in several}
    # The tokens that a text has are those that the tokenizer finds in it, in which upper and lower case are the same.
    pattern = re.compile("|".join(map(re.escape, several)), re.IGNORECASE)
    known = {token.lower(): " ".join(names) for token, names in vectors.items()}
    return [pattern.sub(lambda found: known[found[0].lower()], text) for text in texts]


def _added(tokenizer: Any) -> dict[str, int]:  # noqa: ANN401 - transformers hides from type checkers what it has
    return tokenizer.get_added_vocab()


def _whole_words(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> tuple[str, ...]:
    """Mark the ends of words that were added to a vocabulary; those that go on with more vectors are one word."""
    added = _added(tokenizer).keys() - set(tokenizer.all_special_tokens)
    if not added:
        return tuple(pieces)
    words, base = list[str](), ""
    for piece, following in pairwise((*pieces, "")):
        goes_on = base and re.fullmatch(re.escape(base) + r"_\d+", piece)
        base = base if goes_on else piece
        more = following in added and re.fullmatch(re.escape(base) + r"_\d+", following)
        words.append(("" if goes_on else piece) + _END_OF_WORD * (not more) if piece in added else piece)
    return tuple(words)


def check_length(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reader: str, limit: int | None = None
) -> None:
    """Refuse texts whose end the model would not read.

    Args:
        tokenizer: Of the model.
        texts: What it is to read.
        reader: The model's name.
        limit: How many tokens it reads; None for what the tokenizer says.

    Raises:
        PromptError: Naming the first text that is too long, and what would be left of it.
    """
    limit = tokenizer.model_max_length if limit is None else limit
    for text, tokens in zip(texts, tokenizer(spelled(tokenizer, texts)).input_ids, strict=True):
        if len(tokens) > limit:
            kept = tokenizer.decode(tokens[: limit - 1], skip_special_tokens=True).strip()
            raise PromptError(
                f"The prompt {text!r} has {len(tokens)} tokens, but {reader} reads {limit}: it would see only "
                f"{kept!r}. Shorten the class name or the template."
            )
