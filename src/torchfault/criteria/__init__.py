"""What counts as a failure: criteria that compare golden and faulty outputs, and metrics of a whole data set."""

from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not, Outcomes, judge
from torchfault.criteria.failures import MarginDrop, Misclassified, NonFinite, OutputError, Top1Change, TopK
from torchfault.criteria.metrics import Metric, accuracy, mean_iou, perplexity
from torchfault.criteria.spikes import FirstSpikeChange, SpikeCountChange
from torchfault.criteria.tasks import BoxChange, MaskChange, PerplexityRise

__all__ = [
    "AllOf",
    "AnyOf",
    "BoxChange",
    "Criterion",
    "FirstSpikeChange",
    "MarginDrop",
    "MaskChange",
    "Metric",
    "Misclassified",
    "NonFinite",
    "Not",
    "Outcomes",
    "OutputError",
    "PerplexityRise",
    "SpikeCountChange",
    "Top1Change",
    "TopK",
    "accuracy",
    "judge",
    "mean_iou",
    "perplexity",
]
