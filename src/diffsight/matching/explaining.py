"""Where each word of a caption looked, and what the caption explains of the image."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffsight.backbones.base import Backbone, ReadsText
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.data.images import images_from
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ImageError, InputError
from diffsight.matching.adapters import Adapter
from diffsight.matching.attention import find_attention_layers, reading
from diffsight.matching.settings import MatchSettings, levels_of
from diffsight.scoring.elimination import Exhaustive


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explanation:
    """What a model makes of an image and a caption.

    Attributes:
        words: Of the caption, with the marks of beginning and end first and last, which not every tokenizer has.
        maps: The share of attention that each place of the image gives to each word, mean over heads, layers and
            draws; over all words and padding the shares of a place sum to 1.
        gain: How much less error there is at each place under the caption than under the empty text.
        timesteps: What the network was fed, ascending.
        gain_by_timestep: The mean gain at each.
    """

    words: tuple[str, ...]
    maps: Float[np.ndarray, "words h w"]
    gain: Float[np.ndarray, "h2 w2"]
    timesteps: Float[np.ndarray, " draws"]
    gain_by_timestep: Float[np.ndarray, " draws"]

    def __str__(self) -> str:
        width = max(len(word) for word in self.words)
        lines = []
        for word, found in zip(self.words, self.maps, strict=True):
            y, x = np.unravel_index(int(found.argmax()), found.shape)
            place = f"most at x {(x + 0.5) / found.shape[1]:.0%}, y {(y + 0.5) / found.shape[0]:.0%}"
            lines.append(f"{word:<{width}}  {found.mean():7.4f}  {place}")
        return "\n".join(["attention by word (mean share; where it is largest)", *lines])


@torch.no_grad()
def explain(
    backbone: Backbone,
    image: Any,  # noqa: ANN401
    text: str,
    settings: MatchSettings,
    *,
    draws: int = 32,
    adapter: Adapter | None = None,
) -> Explanation:
    """Look at one image and one caption.

    Args:
        backbone: A model with attention to text.
        image: One image.
        text: Its caption.
        settings: For timesteps, layers and the seed.
        draws: Noise levels.
        adapter: Whose prompt tokens stand before the caption.

    Raises:
        InputError: If the model has no attention to text.
        ImageError: If the image cannot be read.
        PromptError: If the text is too long.
    """
    if not isinstance(backbone, ReadsText):
        raise InputError(f"{backbone.name} reads no text as tokens, so there is no attention to look at.")
    tokens = backbone.tokens([text])
    layers = find_attention_layers(backbone.network, settings.layers)
    condition = backbone.condition([text]).with_null()
    if adapter is not None:
        condition = adapter.condition(condition)
    (encoded,) = encode_images(backbone, by_content(images_from(image), []))
    if encoded.x0 is None:
        raise ImageError(str(encoded.failure))
    levels, order = levels_of(settings, Exhaustive(num_draws=draws), backbone).sort(stable=True)
    bank = NoiseBank(seed=settings.seed, shared=True)
    sides = backbone.latent_shape[1:]
    mask = condition.tensors.get("encoder_attention_mask")
    shares = partial(_shares, sides=sides, seen=None if mask is None else mask[0] != 0)
    total, gain, gains = torch.zeros(()), torch.zeros(sides), []
    for draw, level in zip(order.tolist(), levels.tolist(), strict=True):
        eps = bank.noise(encoded.id, [draw], encoded.x0.shape).to(encoded.x0.device)
        level_ = torch.tensor([level])
        x_t = backbone.schedule.mix(encoded.x0[None], eps, level_)
        with reading(backbone.network, layers, shares) as found:
            under_text = backbone.predict(x_t, level_, condition.take([0])).eps.float()
            maps = torch.stack([found[layer.path] for layer in layers]).mean(0)
        under_null = backbone.predict(x_t, level_, condition.take([1])).eps.float()
        better = ((under_null - eps).square() - (under_text - eps).square()).mean((0, 1)).cpu()
        total, gain = total + maps.cpu(), gain + better
        gains.append(float(better.mean()))
    extra = total.shape[0] - tokens.content.shape[1]
    # T5 has no mark of the beginning, and Gemma none of the end: there are words, and the mark has no share.
    marks = (("start", 0), ("end", int(tokens.end[0].int().argmax())))
    start, end = ((mark, [] if tokens.content[0, place] else [place]) for mark, place in marks)
    words = [start, *tokens.words(0), end]
    return Explanation(
        words=tuple(word for word, _ in words),
        maps=np.stack([total[[extra + place for place in places]].sum(0).numpy() / draws for _, places in words]),
        gain=gain.numpy() / draws,
        timesteps=backbone.schedule.timesteps[levels].numpy(),
        gain_by_timestep=np.array(gains),
    )


def _shares(
    query: Tensor, key: Tensor, sides: tuple[int, int], seen: Tensor | None = None
) -> Float[Tensor, "tokens h w"]:
    """Attention of one image, mean over heads, at the latent's size; head by head, because a map can be large.

    Where the network masks the padding, ``seen`` says which tokens it sees.
    """
    height, width = sides
    places, tokens = query.shape[2], key.shape[2]
    down = round((height * width / places) ** 0.5)
    total = torch.zeros(places, tokens, device=query.device)
    for head in range(query.shape[1]):
        logits = query[0, head].float() @ key[0, head].float().T / query.shape[-1] ** 0.5
        total += (logits if seen is None else logits.masked_fill(~seen, -math.inf)).softmax(-1)
    maps = (total / query.shape[1]).T.reshape(1, tokens, height // down, width // down)
    return functional.interpolate(maps, size=sides, mode="bilinear", align_corners=False)[0]
