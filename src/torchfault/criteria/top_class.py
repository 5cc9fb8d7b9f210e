"""Which criteria look at nothing but the top class, and at whether outputs are finite."""

from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not
from torchfault.criteria.failures import Misclassified, NonFinite, Top1Change, TopK

__all__ = ["by_top_class"]


def by_top_class(criterion: Criterion) -> bool:
    """Whether outcomes by *criterion* follow from the top class of scores, given that they are finite.

    >>> by_top_class(Top1Change() & ~NonFinite()), by_top_class(TopK(2))
    (True, False)
    """
    if isinstance(criterion, AllOf | AnyOf):
        return all(by_top_class(part) for part in criterion.parts)
    if isinstance(criterion, Not):
        return by_top_class(criterion.part)
    if isinstance(criterion, TopK):
        return criterion.k == 1
    if isinstance(criterion, Misclassified):
        return criterion.threshold is None
    return isinstance(criterion, Top1Change | NonFinite)
