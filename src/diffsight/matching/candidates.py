"""Sets of candidates, from pictures and words to how each fits; what cannot be read fails its own set alone."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from torch import nn

from diffsight.backbones.base import Backbone, ReadsText
from diffsight.backbones.encoding import Encoded, by_content, encode_images
from diffsight.data.images import images_from
from diffsight.data.queries import Picture, Query
from diffsight.errors import DiffsightError
from diffsight.matching.adapters import Adapter
from diffsight.matching.contest import Field, Finish, compete
from diffsight.matching.leak import leak
from diffsight.matching.settings import MatchSettings, levels_of, make_scorer, weights_of
from diffsight.matching.statistics import Ledger
from diffsight.scoring.elimination import Policy


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Candidates:
    """Pictures and texts, every one of which competes with every other.

    Attributes:
        pictures: Files or images.
        texts: Captions.
        policy: Which draws, and when a pair is out.
        slots: The pairs in the order in which a batch leak averages them; None: as they are.
    """

    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    policy: Policy
    slots: Int[np.ndarray, " pairs"] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """Sets that share a policy, ready to be measured.

    Attributes:
        ledger: Measures pairs.
        fields: The sets without a failure.
        places: Where each of them stood among the sets given.
        failures: Reason by place of each of the others.
    """

    ledger: Ledger
    fields: tuple[Field, ...]
    places: tuple[int, ...]
    failures: dict[int, str]


def candidate_sets(query: Query) -> tuple[Int[np.ndarray, " candidates"], ...]:
    """Places of a query's pairs, in the order (image, text), that compete with each other; the right one first."""

    def first(line: Int[np.ndarray, " candidates"], place: int) -> Int[np.ndarray, " candidates"]:
        return np.concatenate([line[[place]], np.delete(line, place)])

    if query.form != "grid":
        return (first(np.arange(query.count), query.positive or 0),)
    table = np.arange(query.count**2).reshape(query.count, query.count)
    return tuple(first(line, place) for lines in (table, table.T) for place, line in enumerate(lines))


def prepare(
    backbone: Backbone,
    settings: MatchSettings,
    sets: Sequence[Candidates],
    *,
    adapter: Adapter | None = None,
    batch_size: int = 256,
) -> Prepared:
    """Read pictures and texts, each once; sets with one that cannot be read fail.

    Args:
        backbone: The model.
        settings: How to score.
        sets: With the same policy.
        adapter: What was learnt; its prompt tokens are put before the texts.
        batch_size: Rows per call of the model.
    """
    policy = sets[0].policy
    pictures = {_key(picture): picture for one in sets for picture in one.pictures}
    images = dict(zip(pictures, _encode(backbone, list(pictures.values())), strict=True))
    distinct = dict.fromkeys(text for one in sets for text in one.texts)
    refused = {text: reason for text in distinct if (reason := _refusal(backbone, text))}
    texts = {text: place for place, text in enumerate(text for text in distinct if text not in refused)}
    good = {key: place for place, key in enumerate(key for key, image in images.items() if image.x0 is not None)}
    fields, places, failures = [], [], {}
    for place, one in enumerate(sets):
        keys = [_key(picture) for picture in one.pictures]
        reasons = [images[key].failure for key in keys if key not in good] + [
            refused[text] for text in one.texts if text in refused
        ]
        if reasons:
            failures[place] = str(reasons[0])
            continue
        grid = np.meshgrid([good[key] for key in keys], [texts[text] for text in one.texts], indexing="ij")
        fields.append(Field(images=grid[0].ravel(), texts=grid[1].ravel(), policy=policy))
        places.append(place)
    levels = levels_of(settings, policy, backbone)
    scorer = make_scorer(backbone, settings, tuple(texts), levels)
    if adapter is not None:
        scorer = replace(scorer, condition=adapter.condition(scorer.condition))
    ledger = Ledger(
        scorer=scorer,
        images=[image for image in images.values() if image.x0 is not None],
        draws=policy.max_draws,
        batch_size=batch_size,
    )
    return Prepared(ledger=ledger, fields=tuple(fields), places=tuple(places), failures=failures)


def run(
    backbone: Backbone,
    settings: MatchSettings,
    sets: Sequence[Candidates],
    *,
    adapter: Adapter | None = None,
    batch_size: int = 256,
) -> tuple[list[Finish | str], int]:
    """Let every set compete; sets share batches, pictures, texts, and pairs that they have in common.

    Args:
        backbone: The model.
        settings: How to score. Where they ask for a batch leak, the sets are cut into its batches in order.
        sets: What competes.
        adapter: What was learnt.
        batch_size: Rows per call of the model.

    Returns:
        How each set ended, or why it could not compete; and the calls of the denoiser that all took together.
    """
    results: dict[int, Finish | str] = {}
    calls = 0
    for members in _by_policy(sets):
        ready = prepare(backbone, settings, [sets[i] for i in members], adapter=adapter, batch_size=batch_size)
        results |= {members[place]: why for place, why in ready.failures.items()}
        if not ready.fields:
            continue
        weights = weights_of(settings, ready.ledger.scorer.levels, backbone)
        with applied(adapter, backbone.network):
            if settings.batch_leak is None:
                finishes = compete(ready.ledger, ready.fields, settings.score, weights)
            else:
                at = [members[place] for place in ready.places]
                slots = [_slots(sets[place]) for place in at]
                batches = [place // settings.batch_leak for place in at]
                finishes = leak(ready.ledger, ready.fields, slots, batches, settings.score, weights)
        calls += ready.ledger.calls
        for place, finish in zip(ready.places, finishes, strict=True):
            results[members[place]] = finish if finish.finite else _nan(backbone)
    return [results[place] for place in range(len(sets))], calls


def _slots(one: Candidates) -> Int[np.ndarray, " pairs"]:
    return np.arange(len(one.pictures) * len(one.texts)) if one.slots is None else one.slots


def applied(adapter: Adapter | None, network: nn.Module) -> AbstractContextManager[None]:
    """The network with what the adapter changes in it."""
    return nullcontext() if adapter is None else adapter.applied(network)


def _by_policy(sets: Sequence[Candidates]) -> Iterator[list[int]]:
    """Places of the sets, together where they have one policy: they then see the same draws."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(sets):
        groups.setdefault(str(one.policy.to_dict()), []).append(place)
    yield from groups.values()


def _key(picture: Picture) -> object:
    """Files are one picture if they are one file; an image in memory is itself."""
    return ("memory", id(picture)) if not hasattr(picture, "__fspath__") else ("file", str(picture))


def _encode(backbone: Backbone, pictures: Sequence[Picture]) -> list[Encoded]:
    return list(encode_images(backbone, by_content(images_from(list(pictures)), [])))


def _refusal(backbone: Backbone, text: str) -> str | None:
    """Why the model cannot read a text, or None."""
    try:
        if isinstance(backbone, ReadsText):
            backbone.tokens([text])
        else:
            backbone.condition([text])
    except DiffsightError as error:
        return str(error)
    return None


def _nan(backbone: Backbone) -> str:
    name = str(backbone.dtype).removeprefix("torch.")
    advice = "" if name == "float32" else "; try --dtype fp32"
    return f"the network gave a value that is not finite (computing in {name}){advice}"
