"""What checks the labels of drawn images: the generator's own zero-shot classifier, another model's, or a CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffsight.cli import options

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from diffsight.backbones import Backbone
    from diffsight.synthesis.classes import Classes
    from diffsight.synthesis.filters import Scorer

SELF = "self"
_DRAWS = 20
_TEMPLATE = "a photo of a {}."


def make_scorer(
    name: str | None, backbone: "Backbone", classes: "Classes", *, device: str | None, dtype: str | None
) -> "Scorer | None":
    """What checks the labels: the generator's own zero-shot classifier, another model's, or a CLIP.

    Raises:
        ModelError: If the model cannot be loaded.
        PromptError: If a class name is too long for it.
    """
    if name is None:
        return None
    from diffsight.backbones.encoders.clip import is_clip, load_clip

    if name != SELF and is_clip(name):
        return _ClipScorer(load_clip(name, device=device, dtype=dtype), tuple(classes.names))
    from diffsight.zero_shot.classifier import DiffusionClassifier

    judge = backbone if name == SELF else options.load_model(name, device, dtype)
    classifier = DiffusionClassifier(
        judge,
        list(classes.names),
        templates=_TEMPLATE,
        policy=options.make_policy(None, _DRAWS),
        batch_size=options.batch_rows(judge, None),
    )
    return _ZeroShotScorer(classifier.fit())


@dataclass(slots=True, eq=False)
class _ZeroShotScorer:
    """A diffusion classifier as the filters want it."""

    classifier: Any
    name: str = field(init=False)

    def __post_init__(self) -> None:
        identity = self.classifier.setup_.backbone.identity()
        self.name = f"zero-shot {identity.get('weights', '')[:16]}, at most {_DRAWS} draws, {_TEMPLATE!r}"

    def __call__(self, images: "Sequence[Image.Image]") -> "np.ndarray":
        return self.classifier.decision_function(list(images))


@dataclass(slots=True, eq=False)
class _ClipScorer:
    """CLIP as the filters want it."""

    encoder: Any
    classes: tuple[str, ...]
    name: str = field(init=False)
    _texts: Any = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"clip {self.encoder.identity().get('weights', '')[:16]}, {_TEMPLATE!r}"
        self._texts = self.encoder.texts([_TEMPLATE.format(name) for name in self.classes])

    def __call__(self, images: "Sequence[Image.Image]") -> "np.ndarray":
        return (self.encoder.images(images) @ self._texts.T).float().cpu().numpy()
