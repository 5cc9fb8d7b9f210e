"""A progress bar for notebooks: one output that changes as the campaign goes on."""

import sys
from typing import Any

from torchfault.campaign.progress import Standing
from torchfault.text import count, duration

__all__ = ["NotebookBar", "in_notebook"]


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this process; nothing is imported to find out.

    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookBar:
    """A callback for the *progress* of :func:`torchfault.campaign.run` in a notebook."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, standing: Standing) -> None:
        from IPython.display import HTML, display

        shown = HTML(bar_html(standing))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def bar_html(standing: Standing) -> str:
    """Return where a campaign stands, as HTML.

    >>> from torchfault.statistics import proportion
    >>> bar_html(Standing(500, 1000, 250.0, 2.0, proportion(5, 500), 500))
    '<progress max="1000" value="500"></progress> 500 of 1,000 trials, 250/s, 2.0 s left, 1.00 % [0.43, 2.32] fail'
    """
    of = f" of {count(standing.total)}" if standing.total else ""
    bounds = f' max="{standing.total}" value="{standing.done}"' if standing.total else ""
    parts = [standing.part] if standing.part else []
    parts += [f"{count(standing.done)}{of} trials", f"{count(standing.rate)}/s"]
    parts += [f"{duration(standing.left)} left"] if standing.left is not None else []
    estimate = standing.estimate
    share = estimate.trials and 0 <= estimate.low <= estimate.high <= 1
    parts += [f"{estimate.format_percent()} fail"] if share else []
    return f"<progress{bounds}></progress> {', '.join(parts)}"
