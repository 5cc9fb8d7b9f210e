"""The name of a site, taken apart once: what it belongs to, its role there, and which of several it is."""

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

__all__ = ["CONSTANT", "SiteName", "site_name"]

CONSTANT = "constant"
_NUMBERED = re.compile(r"(input|output|data)(\d*)")


@dataclass(frozen=True)
class SiteName:
    """``base:role[place][.part][#step]``, each as described below; ``str()`` puts it together again.

    - *base* is a parameter (``conv1.weight``), the call of a module (``conv1``, ``conv1@2`` for its third), that of a
      functional operation in it (``layer1.0.add``), or an argument of the model (``x`` in ``x:data``).
    - *role* is empty for a plain parameter, else ``input``, ``output``, ``data`` or ``state`` for activations,
      ``constant`` for a neuron's number, or what a storage calls the words (``indices``, ``scale``).
    - *place* counts the tensors of one role from 0, which is not written.
    - *part* is what a state or a constant is called, or the words of a block (``output.exponent``).
    - *step* is the time step at which a module with states shows the tensor; ``None`` for all of them.

    >>> site_name("layer1.0.add@1:input2")
    SiteName(base='layer1.0.add@1', role='input', place=2, part='', step=None)
    >>> str(SiteName("lif1", "state", part="mem", step=3))
    'lif1:state.mem#3'
    """

    base: str
    role: str = ""
    place: int = 0
    part: str = ""
    step: int | None = None

    def __str__(self) -> str:
        part, step = f".{self.part}" if self.part else "", "" if self.step is None else f"#{self.step}"
        return f"{self.base}:{self.role}{self.place or ''}{part}{step}" if self.role else self.base

    @cached_property
    def path(self) -> str:
        """The base without the numbers of repeated calls.

        >>> site_name("layer@1.add@2:output").path
        'layer.add'
        """
        return ".".join(piece.partition("@")[0] for piece in self.base.split("."))

    @property
    def owner(self) -> str:
        """The path of what the last piece of the base stands in: a module, for a parameter or an operation."""
        return self.path.rpartition(".")[0]

    @property
    def caller(self) -> str:
        """The call of the module in which a functional operation runs: the base without its last piece."""
        return self.base.rpartition(".")[0]

    @property
    def last(self) -> str:
        """The last piece of the path: a parameter's own name, or that of an operation."""
        return self.path.rpartition(".")[2]

    @property
    def whole(self) -> "SiteName":
        """The activation that a block belongs to; the name itself for any other site.

        >>> str(site_name("conv1:output.exponent").whole), str(site_name("lif1:state.mem").whole)
        ('conv1:output', 'lif1:state.mem')
        """
        return replace(self, part="") if self.block else self

    @property
    def block(self) -> str:
        """The part of an activation kept in blocks that the site is, empty for the codes and for any other site."""
        return self.part if self.role in ("input", "output") else ""

    @property
    def over_time(self) -> "SiteName":
        """The name that the tensor has over all time steps and calls.

        >>> str(site_name("lif1:state.mem#3").over_time), str(site_name("fc@2:output").over_time)
        ('lif1:state.mem', 'fc:output')
        """
        if self.step is not None:
            return replace(self, step=None)
        return replace(self, base=self.path) if self.role else self


@lru_cache(maxsize=2**16)
def site_name(text: str) -> SiteName:
    """Return the parts of a site's name; every text has some.

    >>> site_name("fc.weight"), site_name("fc.weight:indices").role
    (SiteName(base='fc.weight', role='', place=0, part='', step=None), 'indices')
    """
    base, _, rest = text.partition(":")
    rest, _, step = rest.partition("#")
    role, _, part = rest.partition(".")
    numbered = _NUMBERED.fullmatch(role)
    role, place = (numbered[1], int(numbered[2] or 0)) if numbered else (role, 0)
    return SiteName(base, role, place, part, int(step) if step.isdecimal() else None)
