"""Method and assumptions of a campaign in a paragraph that a reviewer can check, derived from its stored design."""

from torchfault.report.section import Section
from torchfault.report.words import brief, failing, fault_of, listed, metric_of, unit_word
from torchfault.results import Results
from torchfault.space import FaultSpace
from torchfault.text import count

__all__ = ["method"]

_METHODS = {
    "wilson": "Wilson's score intervals",
    "clopper-pearson": "Clopper and Pearson's exact intervals",
    "jeffreys": "Jeffreys intervals",
    "stratified-score": "score intervals of stratified proportions",
    "anytime": "confidence sequences",
    "two-stage-score": "score intervals with the variance of both stages",
    "gaffke": "Gaffke's intervals for bounded means",
    "exhaustive": "bounds by what is missing",
    "complete": "no interval, since nothing was left out",
}


def method(results: Results) -> Section:
    """Return how the numbers of a campaign came about, and what they rest on."""
    said = [" ".join([*_population(results), *_draws(results), *_outcome(results)])]
    said.append(" ".join([*_intervals(results), *_limits(results)]))
    warnings = results.diagnostics().warnings if len(results) else ()
    return Section("Method and assumptions", said, warnings=warnings)


def _population(results: Results) -> list[str]:
    record, space, word = results.record, results.space, unit_word(results)
    where = ""
    if isinstance(space, FaultSpace):
        words = listed(list(dict.fromkeys(site.word for site in space.sites))[:4])
        where = f": every struck bit of every word ({words}) of {count(len(space.sites))} tensors"
    measure = brief(record.configuration.get("measure"))
    likely = (
        "all of them count alike"
        if measure in ("ProductMeasure", "uniform")
        else f"they count by their probability under {measure}"
    )
    return [
        f"The population is {count(len(space))} {word}{where}, on {count(record.inputs)} inputs; {likely}.",
        f"A fault is {fault_of(results)}; nothing else in the hardware or the software is assumed to fail.",
    ]


def _draws(results: Results) -> list[str]:
    design, record = results.design, results.record
    settings = record.configuration.get("settings") or {}
    sampler = brief(record.configuration.get("sampler"))
    each = int(record.configuration.get("inputs_per_fault", 1))
    if design.enumerates:
        return ["All of them are struck, in order, on every input."]
    kind = "uniformly at random" if sampler.startswith("Uniform(faults=1,") else f"by {sampler}"
    if (recipe := settings.get("recipe", "run")) != "run":
        kind = f"by the recipe '{recipe}'"
    told = [f"{count(len(results))} trials were drawn {kind}, from the seed {record.seed}"]
    told.append("each draw being a whole word with all flips of its bits" if design.unit == "word" else "")
    told.append(f"each running on {count(each)} inputs, which count as one draw" if each > 1 else "")
    told.append(f"from {count(len(design.strata))} strata" if len(design.strata) > 1 else "")
    told.append("independently of each other" if design.replacement else "without replacement")
    if design.adapts:
        told.append("later ones by what earlier ones had found, block by block, as the design allows for")
    if design.sample is not None:
        told.append("of which only those of the random side sample count towards shares")
    weighed = results.columns.weights is not None
    exact = " Each trial counts by the weight p/q of its draw, so that estimates stay unbiased." if weighed else ""
    return [f"{', '.join(part for part in told if part)}.{exact}"]


def _outcome(results: Results) -> list[str]:
    if results.columns.values is not None:
        return [f"Each trial runs on the whole data set; its value is the drop of {metric_of(results)} below golden."]
    told = f"A trial fails where {failing(results)}, where outputs are NaN or infinite that are not so without faults, "
    bad = int(results.record.golden.get("unusable", 0))
    more = f" {count(bad)} inputs give NaN or infinity even without faults." if bad else ""
    return [f"{told}or by an exception.{more}"]


def _intervals(results: Results) -> list[str]:
    whole, design, level = results.estimate(), results.design, f"{100 * results.level:g} %"
    name = whole.method.partition(",")[0]
    looks = "hold at every look, so that outcomes may decide when to stop" if design.looks == "every" else ""
    told = [f"Intervals are {_METHODS.get(name, name)} at {level}{f'; they {looks}' if looks else ''}."]
    stop = results.record.configuration.get("stop")
    if stop is not None:
        told.append(f"The rule to stop was {brief(stop)}; the campaign is {results.record.status}.")
    if not design.replacement and not design.enumerates:
        told.append("What is left undrawn of the population is reckoned with.")
    told.append("Each interval stands for itself: of twenty at 95 %, one is expected to miss its truth.")
    return told


def _limits(results: Results) -> list[str]:
    inputs = count(results.record.inputs)
    told = [f"All numbers speak for this model, these {inputs} inputs and this set of faults, and for no others."]
    if results.design.reach < 1:
        told.append(f"{100 * (1 - results.design.reach):.3g} % of the population cannot be drawn: all of it may fail.")
    if (known := results.audit()) is not None:
        told.append(f"Not every outcome was seen: {known}; intervals are widened by what that leaves open.")
    if (proven := results.proofs()) is not None:
        told.append(f"Not every outcome had a lane: {proven}; nothing is assumed there.")
    return told
