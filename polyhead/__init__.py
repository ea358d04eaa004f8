"""polyhead: one frozen vision encoder, one pass per picture, many heads. The names that users import.

>>> from polyhead import Engine
>>> [prediction] = Engine.from_bundle("demo").predict("photo.jpg", tasks=["panoptic", "depth"])
>>> prediction.results["depth"].depth_m.shape
"""

from decoders.base import Decoder, PostprocessOptions
from decoders.results import DepthResult, PanopticResult, Result, Segment
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.preprocess import ImageGeometry, InputGeometry
from serving.engine import Engine
from serving.types import Prediction, PredictOptions, Timing

__all__ = [
    "Decoder",
    "DepthResult",
    "EncoderFeatures",
    "EncoderSpec",
    "Engine",
    "ImageGeometry",
    "InputGeometry",
    "PanopticResult",
    "PostprocessOptions",
    "PredictOptions",
    "Prediction",
    "Result",
    "Segment",
    "Timing",
]
