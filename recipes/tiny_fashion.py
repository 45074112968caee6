"""Recipe of ``tiny-fashion``: a text-to-image diffusion model of the 60,000 training photographs of Fashion-MNIST.

    python recipes/tiny_fashion.py --out build/tiny-fashion

The same command continues after any interruption. On two CPU cores it takes about two hours, on a GPU minutes.
Needs the photographs: Debian's package ``dataset-fashion-mnist``, or the four ``.gz`` files of Fashion-MNIST in
``--data``. Test photographs are never read here.
"""

import argparse
import gzip
import json
import logging
from pathlib import Path

import numpy as np
import torch
from latent_diffusion import encode_once, export, make_tokenizer, train_unet, train_vae
from scipy import ndimage
from torch import Tensor
from training_loop import add_length, plans

# The first name of each class is the data set's own; the others are synonyms that an English speaker may use.
NAMES = (
    ("t-shirt/top", "t-shirt", "top", "tee"),
    ("trouser", "trousers", "pants"),
    ("pullover", "sweater", "jumper"),
    ("dress", "gown"),
    ("coat", "jacket"),
    ("sandal", "open shoe"),
    ("shirt", "button-up shirt", "blouse"),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot"),
)
GROUPS = {"garment": (0, 1, 2, 3, 4, 6), "shoe": (5, 7, 9), "piece of clothing": tuple(range(10))}

# A domain is a transformation of the photograph and the words that tell of it.
DOMAINS: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of a {}",
        "a photo of a {}.",
        "a picture of a {}",
        "an image of a {}",
        "a photo of a {}, a type of clothing",
        "a bad photo of a {}.",
    ),
    "blurry": ("a blurry photo of a {}", "a blurry photo of a {}.", "a blurry picture of a {}"),
    "negative": ("a negative of a {}", "a photo negative of a {}", "an inverted photo of a {}"),
    "outline": ("an outline drawing of a {}", "a line drawing of a {}", "a sketch of a {}"),
    "silhouette": ("a silhouette of a {}", "a black silhouette of a {}"),
    "low-contrast": ("a low-contrast photo of a {}", "a faded photo of a {}"),
}
NEUTRAL = ("{}", "a {}", "a {}.")
PHOTO_SHARE = 0.55
MAX_TOKENS = 16


def transform(domain: str, photos: np.ndarray) -> np.ndarray:
    """Apply a domain to uint8 photographs (N, 28, 28), giving the same shape and type."""
    x = photos.astype(np.float32) / 255
    if domain == "blurry":
        x = ndimage.gaussian_filter(x, sigma=(0, 1.5, 1.5))
    elif domain == "negative":
        x = 1 - x
    elif domain == "outline":
        x = 1 - np.clip(2.5 * np.hypot(*np.gradient(x, axis=(1, 2))), 0, 1)
    elif domain == "silhouette":
        x = 1 - (ndimage.uniform_filter(x, size=(1, 2, 2)) > 0.08)
    elif domain == "low-contrast":
        x = 0.35 + 0.3 * x
    return np.round(x * 255).astype(np.uint8)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, 28, 28) to RGB in [-1, 1], (N, 3, 32, 32), its border of two pixels repeating the edge."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return (torch.from_numpy(padded).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1).contiguous()


def caption(rng: np.random.Generator, domain: str, label: int) -> str:
    """Draw a caption: 10 % empty, mostly the class's own name, sometimes a synonym or only the kind of thing."""
    kind = rng.random()
    if kind < 0.10:
        return ""
    if kind < 0.15:
        name = rng.choice([group for group, members in GROUPS.items() if label in members])
    else:
        names = NAMES[label]
        name = names[0] if rng.random() < 0.6 else rng.choice(names)
    templates = NEUTRAL if rng.random() < 0.1 else DOMAINS[domain]
    text = rng.choice(templates).format(name)
    # Half of the captions have the right article, as people write; half the bare template, as the papers do.
    return text.replace(" a ankle", " an ankle").replace(" a open", " an open") if rng.random() < 0.5 else text


def every_caption() -> list[str]:
    """All captions there can be, for the tokenizer."""
    names = [name for names in NAMES for name in names] + list(GROUPS)
    templates = [template for domain in DOMAINS.values() for template in domain] + list(NEUTRAL)
    return [template.format(name) for template in templates for name in names] + ["an ankle boot, an open shoe"]


def read(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training photographs (60000, 28, 28) and labels (60000,)."""
    images = np.frombuffer(gzip.decompress((data / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((data / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def main() -> None:
    """Run the three stages, continuing whatever has been done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder; the pipeline goes to OUT/pipeline")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    add_length(parser, vae_steps=1000, steps=8000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    photos, labels = read(args.data)
    images = {domain: transform(domain, photos) for domain in DOMAINS}
    others = [domain for domain in DOMAINS if domain != "photo"]
    vae_plan, unet_plan = plans(args)

    def choose_domain(rng: np.random.Generator) -> str:
        return "photo" if rng.random() < PHOTO_SHARE else others[rng.integers(len(others))]

    def images_of(generator: torch.Generator, count: int) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        return to_tensor(np.stack([images[choose_domain(rng)][rng.integers(len(photos))] for _ in range(count)]))

    vae = train_vae(args.out, vae_plan, images_of)

    # Every photograph as it is, and every second one in each other domain: enough, and half the encoding time.
    sets = {domain: x if domain == "photo" else x[::2] for domain, x in images.items()}
    latents = encode_once(args.out, vae, vae_plan.steps, sets, to_tensor)

    tokenizer = make_tokenizer(every_caption(), args.out / "tokenizer", MAX_TOKENS)

    def batch_of(generator: torch.Generator, count: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        x0, captions = [], []
        for _ in range(count):
            domain = choose_domain(rng)
            index = rng.integers(len(latents[domain]))
            x0.append(latents[domain][index])
            captions.append(caption(rng, domain, labels[index * (1 if domain == "photo" else 2)]))
        return torch.stack(x0).float(), captions

    model = train_unet(args.out, unet_plan, tokenizer, batch_of)
    pipeline = args.out / "pipeline"
    export(pipeline, vae, model, tokenizer)
    # How photographs reach the model: diffsight reads this from the folder.
    preprocessing = {"size": 28, "resize": "shortest", "interpolation": "bicubic", "pad": 2, "grayscale": True}
    (pipeline / "diffsight.json").write_text(json.dumps({"transform": preprocessing}, indent=2) + "\n")


if __name__ == "__main__":
    main()
