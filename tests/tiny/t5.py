"""T5's encoder and tokenizer, tiny: its vocabulary has a few whole words and the letters."""

from pipelines import LETTERS, WORDS
from transformers import T5Config, T5EncoderModel, T5TokenizerFast


def t5_tokenizer(max_length=512):
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -3.0)] + [(letter, -4.0) for letter in LETTERS]
    return T5TokenizerFast(vocab=marks + pieces, extra_ids=0, model_max_length=max_length)


def t5_encoder(tokens, width=24):
    config = T5Config(
        vocab_size=len(tokens),
        d_model=width,
        d_ff=32,
        d_kv=8,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)
