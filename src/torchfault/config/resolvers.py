"""The kinds of resolvers: a new one is a class here, with a member of the union below."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from torchfault.config.made import Made
from torchfault.config.section import Kind, expanded_kind, imported, kinds_in
from torchfault.errors import CampaignError

if TYPE_CHECKING:
    from torchfault.resolve import Resolver

__all__ = ["RESOLVERS", "AnyResolver"]


class Pooled(Kind):
    """Quiet faults are struck together; a masked pool counts for all of them, a failing one is searched."""

    kind: Literal["pooled"] = "pooled"
    size: int = Field(default=64, ge=2, le=10_000, description="The most faults in one pool.")
    audit: float = Field(
        default=0.01, ge=0, le=1, description="The share of vouched outcomes to run alone all the same."
    )

    def build(self, made: Made, inner: "Resolver") -> "Resolver":
        """Return the resolver around *inner*."""
        from torchfault.resolve import Pooled

        del made
        return Pooled(self.size, inner, audit=self.audit)


class Monotone(Kind):
    """A masked flip vouches for the smaller flips of its word on the same input, a failing one for the larger ones."""

    kind: Literal["monotone"] = "monotone"
    audit: float = Field(
        default=0.1, ge=0, le=1, description="The share of vouched outcomes to run alone all the same."
    )

    def build(self, made: Made, inner: "Resolver") -> "Resolver":
        """Return the resolver around *inner*."""
        from torchfault.resolve import Monotone

        return Monotone(made.words, inner, audit=self.audit)


class Certified(Kind):
    """Changes that are proven too small to change the top class have no lane; nothing is assumed."""

    kind: Literal["certified"] = "certified"
    audit: float = Field(default=0.01, ge=0, le=1, description="The share of proven outcomes to run all the same.")

    def build(self, made: Made, inner: "Resolver") -> "Resolver":
        """Return the resolver around *inner*."""
        from torchfault.resolve import certified

        return certified(made.engine, made.space, inner, audit=self.audit)


class Import(Kind):
    """A resolver of your own: a value, or a class without arguments, that has `assumption` and `resolve`."""

    kind: Literal["import"] = "import"
    path: str = Field(description="Its place, `package.module:name`; that text alone means the same.")

    def build(self, made: Made, inner: "Resolver") -> "Resolver":
        """Return the resolver; it is the innermost one."""
        del made, inner
        return imported(self.path, "resolve", CampaignError)  # type: ignore[no-any-return]


AnyResolver = Annotated[
    Pooled | Monotone | Certified | Import,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: expanded_kind(value, RESOLVERS, "resolver")),
]
RESOLVERS = kinds_in(AnyResolver)
