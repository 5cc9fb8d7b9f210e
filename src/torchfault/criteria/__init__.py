"""What counts as a failure: criteria that compare golden and faulty outputs, and metrics of a whole data set."""

from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not, Outcomes, judge
from torchfault.criteria.failures import MarginDrop, Misclassified, NonFinite, OutputError, Top1Change, TopK
from torchfault.criteria.metrics import Metric, accuracy, mean_iou, perplexity

__all__ = [
    "AllOf",
    "AnyOf",
    "Criterion",
    "MarginDrop",
    "Metric",
    "Misclassified",
    "NonFinite",
    "Not",
    "Outcomes",
    "OutputError",
    "Top1Change",
    "TopK",
    "accuracy",
    "judge",
    "mean_iou",
    "perplexity",
]
