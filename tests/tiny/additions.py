"""What users train for a model, at tiny size: LoRA in diffusers' and kohya's formats, and textual inversions."""

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel


def save_lora(folder, file, *parts, rank=2, seed=0, alpha=4):
    """A LoRA of the attention of some parts of a pipeline, with diffusers' own saver."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    layers = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in parts:
            network = getattr(pipeline, part)
            targets = ["q_proj", "v_proj"] if isinstance(network, PreTrainedModel) else ["to_q", "to_v", "to_out.0"]
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
            inject_adapter_in_model(config, network)
            network.peft_config = {"default": config}
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
            layers[f"{part}_lora_adapter_metadata"] = config.to_dict()
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return file


def save_kohya(file, pipeline, *, rank=2, alpha=1.0, seed=0):
    """A LoRA of the UNet's queries in kohya's format, whose names have underscores and whose layers say their alpha."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in pipeline.unet.named_modules():
        if name.endswith(".to_q"):
            key = "lora_unet_" + name.replace(".", "_")
            state[f"{key}.lora_down.weight"] = torch.randn(rank, module.in_features, generator=generator)
            state[f"{key}.lora_up.weight"] = torch.randn(module.out_features, rank, generator=generator)
            state[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(state, file)
    return file


def save_embedding(file, widths, *, vectors=1, seed=0):
    """A textual inversion: ``widths`` by name of the tensors."""
    generator = torch.Generator().manual_seed(seed)
    save_file({name: torch.randn(vectors, width, generator=generator) for name, width in widths.items()}, file)
    return file
