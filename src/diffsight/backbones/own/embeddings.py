"""Textual inversion: new words, each as one or several vectors that stand in the text encoder's table of tokens.

References:
    Gal et al., An Image is Worth One Word, 2208.01618, §3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffsight.backbones.folders import one_line
from diffsight.backbones.own.model_file import Embedding
from diffsight.errors import ModelError

_NAMELESS = ("emb_params",)  # Of a file that does not say its token.
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))  # Of the two encoders of SDXL.
_FAMILIES = ("latent_unet", "sdxl")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadEmbedding:
    """The vectors of a token.

    Attributes:
        name: Of the file.
        token: What stands for them in a prompt.
        vectors: Of each text encoder, by its folder.
    """

    name: str
    token: str
    vectors: Mapping[str, Float[Tensor, "vectors _"]]

    @property
    def tokens(self) -> tuple[str, ...]:
        """One for each vector, named as diffusers does: ``<dog>``, then ``<dog>_1`` and so on."""
        count = len(next(iter(self.vectors.values())))
        return (self.token, *(f"{self.token}_{i}" for i in range(1, count)))


def read_embeddings(embeddings: Sequence[Embedding], family: str, encoders: Sequence[str]) -> tuple[ReadEmbedding, ...]:
    """Read textual inversions for a pipeline.

    Args:
        embeddings: Which.
        family: The adapter's module.
        encoders: The folders of its text encoders.

    Raises:
        ModelError: If the family takes none, or a file holds no vectors for these encoders.
    """
    if embeddings and family not in _FAMILIES:
        raise ModelError("Textual inversion is for Stable Diffusion 1, 2 and XL; this is another kind of model.")
    return tuple(_read(one, tuple(encoders)) for one in embeddings)


def _read(embedding: Embedding, encoders: tuple[str, ...]) -> ReadEmbedding:
    name = embedding.file.name
    try:
        state = load_file(embedding.file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name} cannot be read: {one_line(error)}") from error
    keys = next((pair for pair in _PAIRS if set(pair) <= set(state)), None)
    if keys is None and len(state) == 1:
        keys = tuple(state)
        said = keys[0]
        if said not in _NAMELESS and said != embedding.token and not embedding.named:
            raise ModelError(
                f"{name} calls its token {said!r}, and the file's name says {embedding.token!r}. Say which: "
                f"{{file: {name}, token: {said!r}}}."
            )
    if keys is None or len(keys) != len(encoders):
        raise ModelError(
            f"{name} is no textual inversion for {len(encoders)} text encoder{'s' * (len(encoders) > 1)}: it holds "
            f"{', '.join(map(repr, list(state)[:3])) or 'nothing'}. A model with one takes one tensor, SDXL takes "
            f"{' and '.join(map(repr, _PAIRS[0]))}."
        )
    vectors = {part: state[key].float().reshape(-1, state[key].shape[-1]) for part, key in zip(encoders, keys)}  # noqa: B905
    if len({len(each) for each in vectors.values()}) != 1 or not len(vectors[encoders[0]]):
        raise ModelError(f"{name} must hold as many vectors for each text encoder, at least one.")
    return ReadEmbedding(name=name, token=embedding.token, vectors=vectors)


def add_tokens(tokenizer: PreTrainedTokenizerBase, embeddings: Sequence[ReadEmbedding]) -> None:
    """Teach a tokenizer that has just been read the tokens.

    Raises:
        ModelError: If it knows one already.
    """
    for one in embeddings:
        # CLIP's vocabulary has most words with the mark of their end alone.
        if known := [token for token in one.tokens if {token, f"{token.lower()}</w>"} & tokenizer.get_vocab().keys()]:
            raise ModelError(
                f"The token {known[0]!r} of {one.name} is in the model's vocabulary already, and would lose its "
                f"meaning. Give it another: {{file: {one.name}, token: '<my-word>'}}."
            )
        tokenizer.add_tokens(list(one.tokens))


def add_vectors(
    encoder: PreTrainedModel, part: str, tokenizer: PreTrainedTokenizerBase, embeddings: Sequence[ReadEmbedding]
) -> None:
    """Give a text encoder the vectors of tokens that its tokenizer has been taught.

    Args:
        encoder: Of CLIP's kind; gets a larger table of its own.
        part: Its folder.
        tokenizer: After `add_tokens`.
        embeddings: The same.

    Raises:
        ModelError: If the vectors are of another size than the encoder's.
    """
    if not embeddings:
        return
    old = encoder.get_input_embeddings().get_parameter("weight").detach()
    table = torch.cat([old, old.new_zeros(max(0, len(tokenizer) - len(old)), old.shape[1])])
    for one in embeddings:
        vectors = one.vectors[part]
        if vectors.shape[1] != table.shape[1]:
            raise ModelError(
                f"{one.name} has vectors of {vectors.shape[1]} numbers, and the {part} takes {table.shape[1]}: it was "
                "learnt with another model."
            )
        table[tokenizer.convert_tokens_to_ids(list(one.tokens))] = vectors.to(table)
    encoder.set_input_embeddings(nn.Embedding.from_pretrained(table))
    # Old configurations say 2, by which CLIP means the largest token: that was the end of the text, and now is a word.
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id  # pyright: ignore[reportArgumentType]
