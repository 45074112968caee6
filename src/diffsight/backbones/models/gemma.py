"""Gemma as Sana is told its prompts: in lower case, after an instruction, and of all that only the prompt's tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizerFast, PreTrainedTokenizerBase

from diffsight.backbones.opened import Opened
from diffsight.backbones.text import Tokens
from diffsight.errors import PromptError

_TOGETHER = 16  # Prompts at once: each is some 500 tokens long, half of which are the instruction.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GemmaReader:
    """Reads prompts with Gemma 2 after an instruction (2410.10629, §2.3).

    Gemma writes nothing: what counts are its states of the prompt's tokens, which have seen the instruction. The
    denoiser is given the first token of all, and the last `length` - 1, the first of which is the instruction's last.

    Attributes:
        encoder: Gemma.
        tokenizer: Its tokenizer.
        instruction: What precedes each prompt.
        length: Tokens that the denoiser is given.
    """

    encoder: Gemma2Model
    tokenizer: PreTrainedTokenizerBase
    instruction: str
    length: int

    @property
    def said(self) -> str:
        """What `Backbone.identity` has to say of it."""
        instruction = hashlib.sha256(self.instruction.encode()).hexdigest()[:12]
        return f"Gemma, {self.length} tokens, lower case, instruction {instruction}"

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], reader: str, *, instructed: bool = True
    ) -> tuple[Float[Tensor, "b n width"], Int[Tensor, "b n"]]:
        """Encode prompts.

        Args:
            prompts: At least one.
            reader: The model's name.
            instructed: Whether the instruction precedes them; it does not precede the null member.

        Returns:
            The states of the tokens that the denoiser is given, and their mask: 0 for padding.

        Raises:
            PromptError: If a prompt has more tokens than the denoiser is given.
        """
        before = self.instruction if instructed else ""
        whole = self._skipped + self.length if instructed else self.length
        read = [before + _prepared(prompt) for prompt in prompts]
        if instructed:
            self._check(prompts, reader)
        tokens = self.tokenizer(
            read, padding="max_length", padding_side="right", max_length=whole, return_tensors="pt"
        ).to(self.encoder.device)
        kept = [0, *range(whole - self.length + 1, whole)]
        ids, mask = tokens.input_ids, tokens.attention_mask
        groups = zip(ids.split(_TOGETHER), mask.split(_TOGETHER), strict=True)
        states = [self.encoder(input_ids=part, attention_mask=seen).last_hidden_state[:, kept] for part, seen in groups]
        return torch.cat(states), mask[:, kept]

    def tokens(self, texts: Sequence[str], reader: str) -> Tokens:
        """Split texts as `encode` does.

        The end is the last token of a text: Gemma has no mark of it.

        Raises:
            PromptError: As `encode`.
        """
        self._check(texts, reader)
        content, end = torch.zeros(2, len(texts), self.length, dtype=torch.bool)
        skipped, pieces = self._skipped, []
        for row, text in enumerate(texts):
            split = self.tokenizer(self.instruction + _prepared(text), return_offsets_mapping=True)
            given = self.tokenizer.convert_ids_to_tokens(split.input_ids)
            given = [given[0], *given[skipped + 1 :]]
            closed = [place + 1 == len(given) or given[place + 1].startswith("▁") for place in range(len(given))]
            pieces.append(
                tuple(piece.removeprefix("▁") + "</w>" * ends for piece, ends in zip(given, closed, strict=True))
            )
            beyond = [stop > len(self.instruction) for _, stop in split.offset_mapping[skipped + 1 :]]
            content[row, 1 : len(given)] = torch.tensor(beyond, dtype=torch.bool)
            end[row, len(given) - 1] = True
        return Tokens(pieces=tuple(pieces), content=content, end=end)

    @property
    def _skipped(self) -> int:
        """How many tokens the denoiser is not given: those of the instruction but its first and its last."""
        return len(self.tokenizer(self.instruction).input_ids) - 2

    def _check(self, prompts: Sequence[str], reader: str) -> None:
        skipped = self._skipped
        for prompt in prompts:
            ids = self.tokenizer(self.instruction + _prepared(prompt)).input_ids
            if len(ids) - skipped > self.length:
                kept = self.tokenizer.decode(ids[skipped + 1 : skipped + self.length], skip_special_tokens=True).strip()
                raise PromptError(
                    f"The prompt {prompt!r} has {len(ids) - skipped - 2} tokens, but {reader} reads {self.length - 2} "
                    f"after its instruction: it would see only {kept!r}. Shorten the class name or the template."
                )


def open_gemma(opened: Opened, instruction: str, length: int) -> GemmaReader:
    """The Gemma of a folder.

    Args:
        opened: The folder.
        instruction: What precedes each prompt.
        length: Tokens that the pipeline gives to its denoiser.

    Raises:
        ModelError: If there is no vocabulary that can be read.
    """
    return GemmaReader(
        encoder=opened.text_encoder(Gemma2Model, large=True),
        tokenizer=opened.tokenizer(GemmaTokenizerFast),
        instruction=instruction,
        length=length,
    )


def _prepared(prompt: str) -> str:
    return prompt.lower().strip()
