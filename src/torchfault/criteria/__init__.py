"""What counts as a failure: criteria that compare golden and faulty outputs, and metrics of a whole data set."""

from torchfault.criteria.answers import answers, changes
from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not, Outcomes, judge, unusable_inputs
from torchfault.criteria.failures import MarginDrop, Misclassified, NonFinite, OutputError, Top1Change, TopK
from torchfault.criteria.fitting import Fitting, check_fit, fitting, golden_metric, judged, metric_of
from torchfault.criteria.from_text import as_criterion, as_metric
from torchfault.criteria.metrics import (
    Accuracy,
    MeanIou,
    Metric,
    Perplexity,
    accuracy,
    bounds,
    higher_is_better,
    mean_iou,
    perplexity,
)
from torchfault.criteria.spikes import FirstSpikeChange, SpikeCountChange
from torchfault.criteria.tasks import BoxChange, MaskChange, PerplexityRise
from torchfault.criteria.top_class import by_top_class
from torchfault.criteria.values import ThresholdChange, TokenChange

__all__ = [
    "Accuracy",
    "AllOf",
    "AnyOf",
    "BoxChange",
    "Criterion",
    "FirstSpikeChange",
    "Fitting",
    "MarginDrop",
    "MaskChange",
    "MeanIou",
    "Metric",
    "Misclassified",
    "NonFinite",
    "Not",
    "Outcomes",
    "OutputError",
    "Perplexity",
    "PerplexityRise",
    "SpikeCountChange",
    "ThresholdChange",
    "TokenChange",
    "Top1Change",
    "TopK",
    "accuracy",
    "answers",
    "as_criterion",
    "as_metric",
    "bounds",
    "by_top_class",
    "changes",
    "check_fit",
    "fitting",
    "golden_metric",
    "higher_is_better",
    "judge",
    "judged",
    "mean_iou",
    "metric_of",
    "perplexity",
    "unusable_inputs",
]
