"""guided-diffusion's UNet once more, written from its description, to check the conversion of its checkpoints.

It knows nothing of diffusers: a state dict with the authors' keys, made of random numbers, and a forward pass that
reads it. What is said of the architecture is in Dhariwal & Nichol (2105.05233, §3), Nichol & Dhariwal (2102.09672) and
the fact sheet's §1: ResNets with scale-shift norms, resolution changed inside ResNets, attention with heads of a fixed
width, skips concatenated after the running map.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Reference:
    """The authors' flags, as far as they matter to an evaluation."""

    image_size: int
    num_channels: int
    channel_mult: tuple
    num_res_blocks: int
    attention_resolutions: tuple
    num_head_channels: int
    num_classes: int = 0
    use_new_attention_order: bool = False

    def blocks(self):
        """Prefix and steps of each block: ("conv", in, out), ("res", in, out, resize) or ("attention", width)."""

        def width(factor):
            return int(factor * self.num_channels)

        now, side = width(self.channel_mult[0]), self.image_size
        yield "input_blocks.0", [("conv", 3, now)]
        skips, number = [now], 1
        for level, factor in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                steps = [("res", now, width(factor), "same")]
                now = width(factor)
                steps += [("attention", now)] * (side in self.attention_resolutions)
                yield f"input_blocks.{number}", steps
                skips.append(now)
                number += 1
            if level + 1 < len(self.channel_mult):
                yield f"input_blocks.{number}", [("res", now, now, "down")]
                skips.append(now)
                number, side = number + 1, side // 2
        yield "middle_block", [("res", now, now, "same"), ("attention", now), ("res", now, now, "same")]
        number = 0
        for level, factor in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                steps = [("res", now + skips.pop(), width(factor), "same")]
                now = width(factor)
                steps += [("attention", now)] * (side in self.attention_resolutions)
                if level > 0 and i == self.num_res_blocks:
                    steps.append(("res", now, now, "up"))
                    side *= 2
                yield f"output_blocks.{number}", steps
                number += 1
        assert not skips

    def shapes(self):
        """Of the tensors in the authors' state dict, by their keys."""
        time, last = 4 * self.num_channels, int(self.channel_mult[0] * self.num_channels)
        modules = {"time_embed.0": (time, self.num_channels), "time_embed.2": (time, time)}
        for prefix, steps in self.blocks():
            for i, step in enumerate(steps):
                at = f"{prefix}.{i}"
                match step:
                    case ("conv", before, after):
                        modules[at] = (after, before, 3, 3)
                    case ("attention", width):
                        modules[f"{at}.norm"] = (width,)
                        modules[f"{at}.qkv"] = (3 * width, width, 1)
                        modules[f"{at}.proj_out"] = (width, width, 1)
                    case ("res", before, after, _):
                        modules[f"{at}.in_layers.0"] = (before,)
                        modules[f"{at}.in_layers.2"] = (after, before, 3, 3)
                        modules[f"{at}.emb_layers.1"] = (2 * after, time)
                        modules[f"{at}.out_layers.0"] = (after,)
                        modules[f"{at}.out_layers.3"] = (after, after, 3, 3)
                        if before != after:
                            modules[f"{at}.skip_connection"] = (after, before, 1, 1)
        modules |= {"out.0": (last,), "out.2": (6, last, 3, 3)}
        embedding = {"label_emb.weight": (self.num_classes, time)} if self.num_classes else {}
        return {
            **{f"{name}.weight": shape for name, shape in modules.items()},
            **{f"{name}.bias": shape[:1] for name, shape in modules.items()},
            **embedding,
        }

    def random_state(self, seed=0):
        """Weights, also where training starts from zero or one, so that nothing stays hidden."""
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for key, shape in self.shapes().items():
            scale = 0.3 if len(shape) == 1 else 1.0 if "label" in key else 1 / math.sqrt(math.prod(shape[1:]))
            state[key] = torch.randn(shape, generator=generator) * scale
            if len(shape) == 1 and key.endswith("weight"):
                state[key] += 1
        return state

    def forward(self, state, x, t, y=None):
        """The output, and what each block gave: b1, b2, … in the paper's numbers."""

        def linear(name, h):
            return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

        def conv(name, h):
            weight = state[f"{name}.weight"]
            return F.conv2d(h, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

        def norm(name, h):
            return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

        def res(name, h, change):
            resize = {
                "same": lambda z: z,
                "down": lambda z: F.avg_pool2d(z, 2),
                "up": lambda z: z.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
            }[change]
            inner = conv(f"{name}.in_layers.2", resize(F.silu(norm(f"{name}.in_layers.0", h))))
            scale, shift = linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None].chunk(2, dim=1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
            inner = conv(f"{name}.out_layers.3", F.silu(inner))
            outer = resize(h)
            if f"{name}.skip_connection.weight" in state:
                outer = conv(f"{name}.skip_connection", outer)
            return outer + inner

        def attention(name, h):
            tokens = h.flatten(2)
            qkv = F.conv1d(norm(f"{name}.norm", tokens), state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
            width, each = h.shape[1], self.num_head_channels
            heads = []
            for head in range(width // each):
                if self.use_new_attention_order:
                    starts = [part * width + head * each for part in range(3)]
                else:
                    starts = [(3 * head + part) * each for part in range(3)]
                q, k, v = (qkv[:, start : start + each] for start in starts)
                weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(each), dim=-1)
                heads.append(v @ weights.transpose(1, 2))
            projected = F.conv1d(torch.cat(heads, 1), state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
            return (tokens + projected).view_as(h)

        half = self.num_channels // 2
        angle = t[:, None].double() * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(x.dtype)
        emb = linear("time_embed.2", F.silu(linear("time_embed.0", waves)))
        if self.num_classes:
            emb = emb + state["label_emb.weight"][y]
        h, skips, given = x, [], []
        for prefix, steps in self.blocks():
            if prefix.startswith("output"):
                h = torch.cat([h, skips.pop()], dim=1)
            for i, (kind, *about) in enumerate(steps):
                at = f"{prefix}.{i}"
                match kind:
                    case "conv":
                        h = conv(at, h)
                    case "attention":
                        h = attention(at, h)
                    case "res":
                        h = res(at, h, about[-1])
            if prefix.startswith("input"):
                skips.append(h)
            given.append(h)
        return conv("out.2", F.silu(norm("out.0", h))), given
