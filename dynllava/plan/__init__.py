"""What a method promises, as values: no tensor is computed here and nothing heavy imported."""

from .cuts import STAGES, Cut, Merge, Stage
from .keeps import Alternate, Count, Keep, Rule, Share
from .looks import (
    NEXT,
    PRODUCING,
    QUERY_BLOCK,
    Attention,
    ColumnSums,
    Hidden,
    Keys,
    Look,
    Nothing,
    Predictor,
    Question,
    Tower,
)
from .operations import ModelDims, Operation, TowerDims
from .plan import Plan
from .schedule import Schedule
from .segments import Segment
from .shapes import Image, PromptShape, Shape, Text, Voco
from .stores import Dense, PerHead, Span, Store

__all__ = [
    "NEXT",
    "PRODUCING",
    "QUERY_BLOCK",
    "STAGES",
    "Alternate",
    "Attention",
    "ColumnSums",
    "Count",
    "Cut",
    "Dense",
    "Hidden",
    "Image",
    "Keep",
    "Keys",
    "Look",
    "Merge",
    "ModelDims",
    "Nothing",
    "Operation",
    "PerHead",
    "Plan",
    "Predictor",
    "PromptShape",
    "Question",
    "Rule",
    "Schedule",
    "Segment",
    "Shape",
    "Share",
    "Span",
    "Stage",
    "Store",
    "Text",
    "Tower",
    "TowerDims",
    "Voco",
]
