"""Models: the only folder that imports diffusers or transformers."""

from diffsight.backbones.base import Backbone, Condition
from diffsight.backbones.cards import Card, cards, find_card
from diffsight.backbones.loading import load

__all__ = ["Backbone", "Card", "Condition", "cards", "find_card", "load"]
