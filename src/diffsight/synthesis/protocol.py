"""What a network may learn from, and what the result may be called.

Zero-shot means that no real image was used to choose anything (Shipard et al., arXiv:2302.03298, trained on generated
images alone, but their code kept the epoch that was best on the real test images). So real images are refused, also for
early stopping and for choosing an epoch, unless another protocol is asked for by name; and its name stands in the
network's card and beside every number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffsight.errors import InputError, nearest
from diffsight.synthesis.folder import CARD
from diffsight.synthesis.training_set import TrainingSet

PROTOCOLS: Mapping[str, str] = {
    "zero-shot": "trained on generated images alone",
    "distilled": "real images labelled by a model; no label of a person was used",
    "oracle": "trained on generated images, with real ones to choose the epoch: no zero-shot result",
    "supervised": "trained on labelled real images: a ceiling, no zero-shot result",
}


def check_protocol(protocol: str, training: Sequence[TrainingSet], validation: TrainingSet | None) -> None:
    """Refuse images that a protocol does not allow.

    Args:
        protocol: A name in `PROTOCOLS`.
        training: What is learnt from.
        validation: What decides which epoch is kept, and when to stop.

    Raises:
        InputError: If the protocol is unknown, or they do not obey it.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}. {nearest(protocol, PROTOCOLS)}")
    if protocol == "supervised":
        return
    real = [each for each in training if not each.synthetic]
    if protocol == "distilled":
        if named := next((each for each in [*real, validation] if each and not each.synthetic and not each.soft), None):
            raise InputError(
                f"{named.source.name} holds real images with labels, and distilling uses none: give the probabilities "
                "of a model for them (TrainingSet.with_targets), or say protocol 'supervised'."
            )
        return
    if real:
        raise InputError(
            f"{real[0].source.name} is not known to be synthetic: no {CARD} beside it says so, and the protocol "
            f"{protocol!r} learns from generated images alone. Make them by 'diffsight synthesize'; or say yourself "
            "that a folder holds what others generated (--synthetic, or synthetic=True), which is then noted; or say "
            "protocol 'supervised' for a ceiling, or 'distilled' for images that a model has labelled."
        )
    if validation is not None and not validation.synthetic and protocol != "oracle":
        raise InputError(
            f"{validation.source.name} is not known to be synthetic, and no real image may choose an epoch or end the "
            "training of a zero-shot classifier. Leave it out, so that generated images are held out; or say protocol "
            "'oracle', which the result is then called."
        )


def generators(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that drew what was learnt from, as far as that is known.

    Args:
        data: As for `user_word`.
    """
    sets = [*data.get("training", ()), data.get("validation")]
    return tuple(dict.fromkeys(name for each in sets if isinstance(each, Mapping) for name in each.get("drawn_by", ())))


def user_word(data: Mapping[str, Any]) -> str | None:
    """What has to be said where that images were generated is known from the user alone; None where it is not.

    Args:
        data: Under ``training`` and ``validation``, what `TrainingSet.fingerprint` gives.
    """
    sets = [*data.get("training", ()), data.get("validation")]
    names = dict.fromkeys(str(each["name"]) for each in sets if isinstance(each, Mapping) and each.get("stated"))
    return f"that {' and '.join(names)} is generated is the word of who trained it" if names else None
