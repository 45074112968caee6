"""Files of a model from the Hugging Face Hub, or from its cache."""

from collections.abc import Sequence
from pathlib import Path

from diffsight.backbones.cards import Card
from diffsight.backbones.folders import one_line
from diffsight.errors import ModelError


def repository(name: str, revision: str | None) -> tuple[str, str | None]:
    """What ``hf:org/repo@revision`` names: the repository, and the revision unless another is asked for."""
    repo, _, written = name.removeprefix("hf:").partition("@")
    return repo, revision or written or None


def repositories(card: Card, revision: str | None) -> list[tuple[str, str | None]]:
    """Where a card's model is: its repository, and then its mirrors, as they are now.

    Raises:
        ModelError: If the card does not say.
    """
    if card.repo is None:
        raise ModelError(f"The card {card.name!r} says neither where the model is on the Hub nor in the package.")
    return [(card.repo, revision or card.revision), *((mirror, None) for mirror in card.mirrors)]


def download(
    candidates: Sequence[tuple[str, str | None]], patterns: Sequence[str], *, ignored: Sequence[str] = (), advice: str
) -> tuple[Path, str]:
    """Fetch (or find in the cache) the first repository that answers.

    Args:
        candidates: Repositories and revisions, the best first.
        patterns: Which files.
        ignored: Which of these not.
        advice: What to give instead of a name where there is no network.

    Returns:
        The folder; and the repository with its commit.

    Raises:
        ModelError: If none answers.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failures = []
    for repo, revision in candidates:
        try:
            folder = snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
            failures.append(f"{repo}: {one_line(error)}")
        else:
            return Path(folder), f"{repo}@{Path(folder).name}"
    raise ModelError(
        f"The model could not be had from the Hugging Face Hub ({'; '.join(failures)}). Offline, give {advice}."
    )
