"""A UNet on pixels with EDM's noise levels, which diffusers has schedulers for and no pipeline of its own."""

import json

import torch
from diffusers import DDPMPipeline, EDMEulerScheduler
from pipelines import pixel_unet


def save_edm(folder, *, names=(), seed=0, learned_variance=False, **scheduler):
    """With classes, the last of them the null class, or without names unconditional."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = pixel_unet(classes=len(names) + 1 if names else None, learned_variance=learned_variance)
        pipeline = DDPMPipeline(unet=unet, scheduler=EDMEulerScheduler(**scheduler))
    pipeline.save_pretrained(folder, safe_serialization=True)
    if names:
        index = folder / "model_index.json"
        labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
        index.write_text(json.dumps(json.loads(index.read_text()) | labels))
        (folder / "diffsight.json").write_text(json.dumps({"null_class": len(names)}))
    return folder
