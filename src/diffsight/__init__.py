"""diffsight turns any pre-trained diffusion model into a recogniser.

The names below are the public interface. Each is imported when it is first used, so that ``import diffsight`` and the
command line's ``--help`` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffsight.backbones import load as load
    from diffsight.backbones.base import Backbone as Backbone
    from diffsight.backbones.base import Condition as Condition
    from diffsight.data.images import ImageTransform as ImageTransform
    from diffsight.data.images import open_image as open_image
    from diffsight.data.prompts import PromptSet as PromptSet
    from diffsight.data.queries import Query as Query
    from diffsight.data.sources import open_source as open_source
    from diffsight.diffusion.noise import NoiseBank as NoiseBank
    from diffsight.diffusion.prediction import Prediction as Prediction
    from diffsight.diffusion.schedule import Schedule as Schedule
    from diffsight.errors import DiffsightError as DiffsightError
    from diffsight.evaluation.runner import evaluate as evaluate
    from diffsight.evaluation.runner import make_job as make_job
    from diffsight.evaluation.task import load_task as load_task
    from diffsight.features.extractor import FeatureExtractor as FeatureExtractor
    from diffsight.features.probe import FeatureProbe as FeatureProbe
    from diffsight.matching.fitting import fit_adapter as fit_adapter
    from diffsight.matching.matcher import ImageTextMatcher as ImageTextMatcher
    from diffsight.matching.settings import MatchSettings as MatchSettings
    from diffsight.scoring.elimination import Exhaustive as Exhaustive
    from diffsight.scoring.elimination import Staged as Staged
    from diffsight.scoring.racing import Forecast as Forecast
    from diffsight.scoring.racing import PairedTTest as PairedTTest
    from diffsight.scoring.racing import PooledRace as PooledRace
    from diffsight.scoring.racing import Race as Race
    from diffsight.synthesis.bag import TrickOptions as TrickOptions
    from diffsight.synthesis.bag import make_trick as make_trick
    from diffsight.synthesis.dataset import read_synthetic as read_synthetic
    from diffsight.synthesis.export import export_onnx as export_onnx
    from diffsight.synthesis.generator import recreate as recreate
    from diffsight.synthesis.generator import synthesize as synthesize
    from diffsight.synthesis.options import TrainSettings as TrainSettings
    from diffsight.synthesis.plan import SynthesisSettings as SynthesisSettings
    from diffsight.synthesis.trained import TrainedClassifier as TrainedClassifier
    from diffsight.synthesis.trainer import train as train_network  # noqa: F401
    from diffsight.synthesis.training_set import open_training_set as open_training_set
    from diffsight.zero_shot.classifier import DiffusionClassifier as DiffusionClassifier
    from diffsight.zero_shot.settings import Settings as Settings

_HOME = {
    "Backbone": "diffsight.backbones.base",
    "Condition": "diffsight.backbones.base",
    "DiffsightError": "diffsight.errors",
    "DiffusionClassifier": "diffsight.zero_shot.classifier",
    "Exhaustive": "diffsight.scoring.elimination",
    "FeatureExtractor": "diffsight.features.extractor",
    "FeatureProbe": "diffsight.features.probe",
    "ImageTextMatcher": "diffsight.matching.matcher",
    "ImageTransform": "diffsight.data.images",
    "MatchSettings": "diffsight.matching.settings",
    "NoiseBank": "diffsight.diffusion.noise",
    "PairedTTest": "diffsight.scoring.racing",
    "Forecast": "diffsight.scoring.racing",
    "PooledRace": "diffsight.scoring.racing",
    "Prediction": "diffsight.diffusion.prediction",
    "PromptSet": "diffsight.data.prompts",
    "Query": "diffsight.data.queries",
    "Race": "diffsight.scoring.racing",
    "Schedule": "diffsight.diffusion.schedule",
    "Settings": "diffsight.zero_shot.settings",
    "Staged": "diffsight.scoring.elimination",
    "SynthesisSettings": "diffsight.synthesis.plan",
    "TrainSettings": "diffsight.synthesis.options",
    "TrainedClassifier": "diffsight.synthesis.trained",
    "TrickOptions": "diffsight.synthesis.bag",
    "evaluate": "diffsight.evaluation.runner",
    "export_onnx": "diffsight.synthesis.export",
    "fit_adapter": "diffsight.matching.fitting",
    "load": "diffsight.backbones",
    "load_task": "diffsight.evaluation.task",
    "make_job": "diffsight.evaluation.runner",
    "make_trick": "diffsight.synthesis.bag",
    "open_image": "diffsight.data.images",
    "open_source": "diffsight.data.sources",
    "open_training_set": "diffsight.synthesis.training_set",
    "read_synthetic": "diffsight.synthesis.dataset",
    "recreate": "diffsight.synthesis.generator",
    "synthesize": "diffsight.synthesis.generator",
    "train_network": "diffsight.synthesis.trainer",
}
# What has another name where it is defined, which would say too little beside the others.
_CALLED = {"train_network": "train"}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import the public name ``name`` (or read ``__version__``) when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        value = version("diffsight")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), _CALLED.get(name, name))
    else:
        raise AttributeError(f"module 'diffsight' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names with what the module holds already."""
    return sorted({*globals(), *_HOME, "__version__"})
