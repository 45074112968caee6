"""What every diffusion model looks like to the rest of the library."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsight.backbones.text import Tokens
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.transfer import send
from diffsight.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Prompts or class ids, encoded once.

    Attributes:
        names: What each member stands for: the prompt, or the class id in words.
        tensors: What the network is fed, by argument name; each has one row per member.
        null: The same tensors for the empty prompt or the null class, with one row.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    null: Mapping[str, Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Int[Tensor, " b"] | Sequence[int]) -> "Condition":
        """Gather members by position, with repetition: one per row of a batch.

        Args:
            rows: Positions from 0 to ``len(self) - 1``.

        Returns:
            A condition of ``len(rows)`` members. Names follow only while they are cheap, that is for a sequence.
        """
        names = () if isinstance(rows, Tensor) else tuple(self.names[row] for row in rows)
        index = torch.as_tensor(rows, dtype=torch.long)
        on = {device: send(index, device) for device in {value.device for value in self.tensors.values()}}
        return Condition(
            names=names,
            tensors={key: value[on[value.device]] for key, value in self.tensors.items()},
            null=self.null,
        )

    def nulls(self, count: int) -> "Condition":
        """The null member, ``count`` times."""
        return Condition(
            names=("",) * count,
            tensors={key: value.expand(count, *value.shape[1:]) for key, value in self.null.items()},
            null=self.null,
        )

    def with_null(self) -> "Condition":
        """The same members, and the null member as one more at the end."""
        return Condition(
            names=(*self.names, ""),
            tensors={key: torch.cat([value, self.null[key]]) for key, value in self.tensors.items()},
            null=self.null,
        )


def encode_prompts(
    names: Sequence[str], encode: Callable[[Sequence[str]], Mapping[str, Tensor]], *, together: int
) -> Condition:
    """The condition of prompts, with the empty prompt as its null member.

    Args:
        names: The prompts.
        encode: Gives the tensors of some prompts, one row each.
        together: How many go through the text encoders at once.
    """
    null = encode([""])
    groups = [encode(names[start : start + together]) for start in range(0, len(names), together)]
    tensors = {key: torch.cat([null[key][:0], *(group[key] for group in groups)]) for key in null}
    return Condition(names=tuple(names), tensors=tensors, null=null)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A place inside a denoiser whose output can be looked at.

    Attributes:
        name: Stable name: ``enc.17``, ``mid``, ``dec.4``, ``block.12``; the path where a module has no other.
        path: Of the module in the network.
        number: Its place in the order of execution from 1, which is how Mukhopadhyay et al. count blocks; None for
            modules that are no block.
        output: Which of its outputs is the image's, where it gives several: a block of text and image gives both.
    """

    name: str
    path: str
    number: int | None
    output: int = 0


@runtime_checkable
class Backbone(Protocol):
    """A frozen diffusion model.

    The parametrisation, latent scaling, time units and text encoders are the adapter's business and nobody else's.
    """

    @property
    def name(self) -> str:
        """How the user called it: a card's name, a repository or a folder."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of ``x0``."""
        ...

    @property
    def transform(self) -> ImageTransform:
        """From a picture to the network's input."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of a class-conditional model in the order of their ids.

        None for a text-to-image model, and empty for one that reads nothing and so cannot tell classes apart.
        """
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether predictions come with a variance, and so the terms of the variational bound exist."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in; schedules and errors are fp32 or better whatever it is."""
        ...

    @property
    def network(self) -> nn.Module:
        """The denoiser itself, frozen and in evaluation mode."""
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its blocks in the order in which they run."""
        ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to ``x0``, fp32, without randomness."""
        ...

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map ``x0`` back to images in [-1, 1], fp32."""
        ...

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts; for a class-conditional model class names or ids (as text); for none, only the null member.

        Raises:
            PromptError: If a prompt is longer than the model reads, or a class is unknown to it.
        """
        ...

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the denoiser on ``x_t`` at the schedule's levels ``index`` under one condition per row."""
        ...

    def identity(self) -> dict[str, str]:
        """Everything about the model that changes numbers: weights hash, dtype, revision, schedule, transform."""
        ...


@runtime_checkable
class ReadsText(Protocol):
    """A backbone that can say which tokens it reads a text as."""

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoder does.

        Raises:
            PromptError: If a text is longer than the model reads.
        """
        ...


def warn_of_alike(backbone: Backbone, condition: Condition, owner: Sequence[int]) -> None:
    """Say which classes are one to the model: where their errors differ, it is by rounding alone.

    T5, for one, reads every letter of other scripts as the same unknown token; and a class has synonyms and an id.

    Args:
        backbone: The model. One that neither has classes nor can say what it reads passes.
        condition: Of all prompts, or classes.
        owner: The class of each.
    """
    read = backbone.tokens(condition.names).pieces if isinstance(backbone, ReadsText) else None
    if read is None and not backbone.class_names:
        return
    rows, first, alike = condition.tensors.values(), dict[object, int](), list[tuple[int, int]]()
    for row, class_ in enumerate(owner):
        one = first.setdefault(read[row] if read else str([each[row].tolist() for each in rows]), row)
        # FLUX is told a text by two encoders, of which the other may tell them apart.
        if owner[one] != class_ and all(torch.allclose(each[one].float(), each[row].float()) for each in rows):
            alike.append((one, row))
    if alike:
        one, row = alike[0]
        log.warning(
            "%s cannot tell %r from %r%s: it reads both as %s. Rounding alone chooses between such classes. Use other "
            "words, or leave all but one of them out.",
            backbone.name,
            condition.names[one],
            condition.names[row],
            f" (and {len(alike) - 1} more)" if len(alike) > 1 else "",
            repr(" ".join(read[row])) if read else "the same class",
        )


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Choose where to run: what the user said, else CUDA, else Apple's GPU, else the CPU.

    Raises:
        InputError: If the device does not exist here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}. Use 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Device {str(device)!r} was asked for, but torch sees no CUDA GPU here. Use device='cpu'.")
    return chosen


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose the denoiser's precision: what the user said, else bf16 on a GPU that has it, else fp32.

    Raises:
        InputError: If the name is unknown.
    """
    if dtype is None:
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InputError(f"Unknown dtype {dtype!r}. Use one of {', '.join(DTYPES)}.")
    return chosen
