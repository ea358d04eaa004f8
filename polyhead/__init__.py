"""polyhead: one frozen vision encoder, one pass per picture, many heads. The names that users import.

>>> from polyhead import Engine
>>> [prediction] = Engine.from_bundle("demo").predict("photo.jpg", tasks=["panoptic", "depth"])
>>> prediction.results["depth"].depth_m.shape
"""

from decoders.base import Decoder, DecoderModule, PostprocessOptions
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.labels import Label, LabelSet
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry, ImageGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.engine import Engine
from serving.types import Prediction, PredictOptions, Timing

__all__ = [
    "ClassScore",
    "ClassificationResult",
    "Decoder",
    "DecoderModule",
    "DenseEmbeddingResult",
    "DepthResult",
    "EmbeddingResult",
    "EncoderFeatures",
    "EncoderSpec",
    "Engine",
    "FitGeometry",
    "ImageGeometry",
    "InstanceResult",
    "Label",
    "LabelSet",
    "PanopticResult",
    "PostprocessOptions",
    "PredictOptions",
    "Prediction",
    "Result",
    "Segment",
    "SemanticResult",
    "ShortestEdgeGeometry",
    "Timing",
    "WindowGeometry",
    "best_class",
    "class_confidence",
    "semantic_result",
]
