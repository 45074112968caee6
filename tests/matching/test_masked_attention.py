"""Attention of models whose padding is masked, whose norms are of other forms, and whose tokens have other marks."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.deepfloyd import save_deepfloyd
from tiny.pixart import save_pixart
from tiny.sana import save_sana

from diffsight.backbones import load
from diffsight.matching.adapters import with_prompt
from diffsight.matching.attention import attention_layers, reading
from diffsight.matching.explaining import explain
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.settings import MatchSettings
from diffsight.scoring.elimination import Exhaustive

SAVERS = {
    "pixart": save_pixart,
    "sana": save_sana,
    "sana-normed": lambda folder: save_sana(folder, qk_norm="rms_norm_across_heads"),
    "deepfloyd": lambda folder: save_deepfloyd(folder, only_cross_attention=True, mid_block_only_cross_attention=True),
}


@pytest.fixture(scope="module", params=SAVERS)
def backbone(request, tmp_path_factory):
    return load(SAVERS[request.param](tmp_path_factory.mktemp(request.param)))


def test_what_is_read_is_what_the_layer_attends_with(backbone):
    """From queries and keys that were read, with the mask and the layer's own values, comes what the layer gives."""
    layer = attention_layers(backbone.network)[-1]
    module = backbone.network.get_submodule(layer.path)
    values, outputs = [], []
    module.get_submodule("add_v_proj" if layer.joint else "to_v").register_forward_hook(
        lambda *call: values.append(call[2])
    )
    module.to_out[0].register_forward_hook(lambda *call: outputs.append(call[2]))
    condition = backbone.condition(["a photo of a cat", "dog"])
    x_t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with reading(backbone.network, [layer], lambda query, key: (query, key)) as found:
        backbone.predict(x_t, torch.tensor([300, 700]), condition)
    query, key = found[layer.path]
    mask = condition.tensors.get("encoder_attention_mask")
    bias = 0 if mask is None else (1 - mask.float())[:, None, None] * -1e4
    shares = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    value = values[0].unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    again = module.to_out[0]((shares @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, outputs[0], atol=1e-5, rtol=1e-4)


def test_a_heat_map_shares_attention_among_the_tokens_that_are_seen(backbone):
    text, picture = "a photo of a cat", Image.new("RGB", (20, 20), "red")
    found = explain(backbone, picture, text, MatchSettings(), draws=2)
    assert found.words == ("start", *text.split(), "end")
    assert (found.maps[1:-1] > 0).all()
    masked = "encoder_attention_mask" in backbone.condition(()).null
    # Where padding is seen, it has its share as well.
    total = found.maps.sum(0)
    np.testing.assert_allclose(total, 1, atol=1e-5) if masked else np.testing.assert_array_less(total, 0.9)


def test_new_tokens_before_the_text_are_seen(backbone):
    condition = backbone.condition(["cat"])
    x_t = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    width = condition.tensors["encoder_hidden_states"].shape[-1]
    one, other = (
        backbone.predict(x_t, torch.tensor([500]), with_prompt(condition, prompt)).output
        for prompt in (torch.zeros(2, width), torch.linspace(-3, 3, width).repeat(2, 1))
    )
    assert not torch.allclose(one, other, atol=1e-4)


def test_captions_are_matched_by_attention(backbone):
    settings = MatchSettings(policy=Exhaustive(num_draws=2))
    matcher = ImageTextMatcher(backbone, "attention", settings=settings)
    scores = matcher.score([Image.new("RGB", (20, 20), "red")], ["a photo of a cat", "dog"])
    assert np.isfinite(scores).all()
    assert scores[0, 0] != scores[0, 1]
