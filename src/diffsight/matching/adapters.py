"""What a few examples teach a matcher: weights of the statistics, prompt tokens, or LoRA; kept as safetensors."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsight.backbones.base import Backbone, Condition
from diffsight.errors import InputError, ModelError
from diffsight.matching.scores import Score, score_from_dict
from diffsight.matching.settings import MatchSettings
from diffsight.matching.weighing import Weighted

FORMAT = 1
_LORA, _PROMPT, _WEIGHTS = "lora.", "prompt", "weights"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Adapter:
    """What was learnt, and for which model.

    Attributes:
        kind: ``weights``, ``prompt`` or ``lora``.
        model: `identity` of the backbone without its dtype: another model refuses the adapter.
        settings: The settings of matching that it was fitted with, as JSON values.
        weights: Of the statistics, shape (noise bands, columns), for ``weights``.
        prompt: Tokens that stand before those of each text, shape (tokens, width), for ``prompt``.
        lora: State of the low-rank matrices by their name in the network, for ``lora``.
        notes: How it was fitted: examples, loss, seed.
    """

    kind: str
    model: Mapping[str, str]
    settings: Mapping[str, Any]
    weights: Float[Tensor, "bands columns"] | None = None
    prompt: Float[Tensor, "tokens width"] | None = None
    lora: Mapping[str, Tensor] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that the adapter was not fitted for.

        Raises:
            ModelError: Naming what differs.
        """
        here = model_identity(backbone)
        if differing := [key for key in sorted({*here, *self.model}) if here.get(key) != self.model.get(key)]:
            raise ModelError(
                f"This adapter was fitted for another model than {backbone.name}: {', '.join(differing)} differ "
                f"({differing[0]}: {self.model.get(differing[0])!r}, here {here.get(differing[0])!r}). Load the model "
                "that it was fitted for, or fit it again."
            )

    @property
    def score(self) -> Score:
        """The score that it was fitted for: the learnt one for ``weights``, else that of its settings.

        Raises:
            InputError: If its settings name no score that is known.
        """
        if self.weights is not None:
            return Weighted(tuple(map(tuple, self.weights.double().tolist())))
        return score_from_dict(self.settings.get("score", {}))

    def condition(self, condition: Condition) -> Condition:
        """Put the learnt tokens before those of each text, and of the empty text."""
        return condition if self.prompt is None else with_prompt(condition, self.prompt)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Put the low-rank matrices into the network while the context is open; afterwards it is as before.

        Raises:
            ModelError: If PEFT is not installed, or the matrices do not fit.
        """
        if self.lora is None:
            yield
            return
        from diffsight.matching.lora import injected, load_lora

        with injected(network, rank=int(self.notes["rank"]), alpha=float(self.notes["alpha"])):
            load_lora(network, self.lora)
            yield


def with_prompt(condition: Condition, prompt: Float[Tensor, "tokens width"]) -> Condition:
    """Put tokens before those of each member and of the null member.

    Raises:
        InputError: If the model is not told texts as tokens of this width.
    """
    states = condition.tensors.get("encoder_hidden_states")
    if states is None or states.shape[-1] != prompt.shape[-1]:
        raise InputError("Prompt tokens need a model that reads texts as tokens of the same width. Fit 'weights'.")

    def longer(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states, mask = given["encoder_hidden_states"], given.get("encoder_attention_mask")
        more = {"encoder_hidden_states": torch.cat([prompt.to(states).expand(len(states), -1, -1), states], dim=1)}
        if mask is not None:  # Of a model that does not see the padding: it sees the new tokens.
            more["encoder_attention_mask"] = nn.functional.pad(mask, (len(prompt), 0), value=1)
        return {**given, **more}

    return replace(condition, tensors=longer(condition.tensors), null=longer(condition.null))


def model_identity(backbone: Backbone) -> dict[str, str]:
    """What an adapter depends on: all of the model's identity but where it came from and what it computes in."""
    return {key: value for key, value in backbone.identity().items() if key not in ("dtype", "revision")}


def fingerprint(adapter: Adapter) -> str:
    """A hash of what was learnt, for a run."""
    # Rank and alpha decide how strongly low-rank matrices act.
    digest = hashlib.sha256(f"{adapter.kind} {adapter.notes.get('rank')} {adapter.notes.get('alpha')}".encode())
    for name, value in sorted(_tensors(adapter).items()):
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.float().numpy().tobytes())
    return digest.hexdigest()


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors = {f"{_LORA}{name}": value for name, value in (adapter.lora or {}).items()}
    for name, value in ((_PROMPT, adapter.prompt), (_WEIGHTS, adapter.weights)):
        if value is not None:
            tensors[name] = value
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def save_adapter(adapter: Adapter, path: Path | str) -> Path:
    """Write an adapter to a safetensors file, with what it belongs to in the header.

    Args:
        adapter: What to write.
        path: The file; ``.safetensors`` is added where it is missing.

    Returns:
        The file.

    Raises:
        ModelError: If the disk refuses.
    """
    from safetensors.torch import save

    from diffsight.store.disk import put_model

    path = Path(path).expanduser()
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    about = {
        "format": FORMAT,
        "kind": adapter.kind,
        "model": dict(adapter.model),
        "settings": dict(adapter.settings),
        "notes": dict(adapter.notes),
    }
    put_model(path.parent, {path.name: save(_tensors(adapter), {"diffsight": json.dumps(about)})})
    return path


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter; `Adapter.check` tells whether it fits a model.

    Raises:
        InputError: If the file is missing or is no adapter.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"There is no adapter {path}. 'diffsight match fit' writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["diffsight"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if about["format"] != FORMAT:
            raise InputError(f"The adapter {path} has format {about['format']}; this version reads {FORMAT}.")
        learnt: dict[str, Any] = {
            "weights": tensors.get(_WEIGHTS),
            "prompt": tensors.get(_PROMPT),
            "lora": {key.removeprefix(_LORA): value for key, value in tensors.items() if key.startswith(_LORA)} or None,
        }
        # Without what its kind says it would be used as if nothing had been learnt.
        if (held := [kind for kind, value in learnt.items() if value is not None]) != [about["kind"]]:
            raise ValueError(f"kind {about['kind']!r}, but it holds {held}")
        if about["kind"] == "lora" and not {"rank", "alpha"} <= about["notes"].keys():
            raise KeyError("rank, alpha")
        return Adapter(
            kind=about["kind"], model=about["model"], settings=about["settings"], notes=about["notes"], **learnt
        )
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no adapter of diffsight ({error!r}). 'diffsight match fit' writes one.") from error


def settings_of(adapter: Adapter, settings: MatchSettings, *, explicit: bool = False) -> MatchSettings:
    """The settings to match with: those given, with the adapter's own score.

    Args:
        adapter: What was learnt.
        settings: Their score may be the adapter's; or the default one, which stands for none; or, with weights, the one
            of the settings that these were fitted with.
        explicit: Whether somebody asked for that score, so that the default one does not stand for none.

    Raises:
        InputError: If another score is asked for than the adapter was fitted for, or attention would be read in another
            way.
    """
    own, given, here = adapter.score, settings.score, settings.to_dict()
    unused = adapter.weights is not None and here["score"] == adapter.settings.get("score")
    if given != own and (explicit or not (given == MatchSettings().score or unused)):
        what = "holds weights, which are a score of their own" if adapter.weights is not None else f"is for {own}"
        raise InputError(
            f"This adapter {what}, and {given} was asked for. Leave the score out to match with the adapter's, or fit "
            "another adapter."
        )
    for key in ("layers", "tokens", "pooling") if own.needs_attention else ():
        if here[key] != adapter.settings.get(key):
            raise InputError(
                f"This adapter was fitted to attention that was read with {key} {adapter.settings.get(key)!r}; here it "
                f"is {here[key]!r}. Match with the settings that it was fitted with."
            )
    return replace(settings, score=own)
