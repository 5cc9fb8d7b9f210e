"""What a reader has to accept before the numbers mean anything, in sentences: of every campaign, and of this one."""

from collections.abc import Mapping
from typing import Any

from torchfault.results import Results
from torchfault.space import FaultSpace

__all__ = ["assumptions", "claim"]


def claim() -> str:
    """Return what a pack claims, and what it does not."""
    return (
        "Measured evidence for an FMEDA of random hardware faults in the words of a neural network. It claims no "
        "compliance with ISO 26262 or any other standard: whether the failure criterion stands for the violation of a "
        "safety goal, whether the inputs stand for the operation, and which raw rates hold is for the safety engineer."
    )


def assumptions(results: Results, detector: str | None) -> list[str]:
    """Return the assumptions behind the numbers of a campaign, one sentence each."""
    record = results.record
    settings: Mapping[str, Any] = record.configuration.get("settings") or {}
    found = [
        f"One fault at a time, of the model {_named(record.configuration.get('fault'))}; its effect lasts as the "
        "campaign's settings say.",
        f"Dangerous is what the criterion {settings.get('criterion') or _named(record.configuration.get('criterion'))} "
        f"calls a failure, on {record.inputs} inputs, each as likely; NaN, infinity and exceptions always are.",
        "Safe is a fault that is not dangerous by that criterion on the input it struck; another may tell otherwise.",
        f"Within an element faults are as likely as the measure {_named(record.configuration.get('measure'))} says.",
        "Bounds are one-sided: each holds by itself with the confidence that was asked for, not all of them together.",
        "Words outside the elements that are listed, control logic, clocks, power and interconnect are not covered.",
    ]
    if isinstance(results.space, FaultSpace):
        found.append(
            "Raw rates are the user's, per Mbit of 2^20 bits. An activation counts as if it had memory cells of its "
            "own all the time, which overstates memory that is reused."
        )
    else:
        found.append(
            "Raw rates are those of the accelerator's description, per MB of 2^23 flip-flops, while the network runs "
            "without pause; upsets of control are crashes by assumption."
        )
    found.append(_detection(detector))
    if results.design.sample is not None:
        found.append("Of a search only the random sample counts; faults that were picked on purpose are left out.")
    if audit := results.audit():
        found.append(f"Not every outcome was run: {audit}; bounds are widened by it.")
    return found


def _detection(detector: str | None) -> str:
    if detector is None:
        return (
            "No detector was named, so there is no diagnostic coverage: every dangerous fault counts as a single-point "
            "fault, also one without an answer (DUE), which a check for NaN and exceptions would notice."
        )
    what = "NaN, infinity and exceptions" if detector == "due" else f"the flag '{detector}' of the trials"
    return f"The system has a detector that tells {what}, reacts in time to each, and does not fail itself."


def _named(described: Any) -> str:
    """Return the class that a record describes, with its fields that say something."""
    if not isinstance(described, Mapping):
        return "of the campaign"
    fields = {name: value for name, value in (described.get("fields") or {}).items() if value not in (None, {}, 0.0)}
    inside = ", ".join(f"{name}={value}" for name, value in fields.items())
    return f"{described.get('class', described.get('function'))}" + (f"({inside})" if inside else "")
