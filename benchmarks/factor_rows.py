"""The tables of vulnerability factors in the documents, as lines of Markdown, from what their benchmark prints."""

from benchmarks.rows import Found, points, table

__all__ = ["closure", "factor_costs", "factors", "refinements", "shares", "stability"]


def factors(found: Found) -> list[str]:
    """Return how near the factors of channels are to injection, in percentage points."""
    parts = {"filters": found["complete"], "what layers read": found["activations"]}
    told = {
        "mean absolute error of CVF": "cvf_mae",
        "of which injection's own noise can be as much as": "noise",
        "best constant prediction": "constant_mae",
    }
    rows = [["channels compared", *(f"{one['channels']} in {one['layers_compared']} layers" for one in parts.values())]]
    rows += [
        [f"{what}, points", *(points(one[key]["overall"], 3) for one in parts.values())] for what, key in told.items()
    ]
    rows.append(["rank correlation (Spearman)", *(f"{one['cvf_spearman']['overall']:.3f}" for one in parts.values())])
    better = (f"{one['layers_better_than_constant']} of {one['layers_compared']}" for one in parts.values())
    return table(["", *parts], [*rows, ["layers better than their best constant", *better]])


def factor_costs(found: Found) -> list[str]:
    """Return what analyses by whole words took, beside statistical injection into the same filters."""
    names = {
        "sampled": ("10 % of the channels, one weight of each filter and log2 of what layers read", "what layers read"),
        "complete": ("every filter, 12 weights of each", "filters"),
    }
    model = {"sampled": found["model"]["activations, sampled"], "complete": found["model"]["weights"]}
    rows = []
    for name, (what, of) in names.items():
        value, low, high = (100 * one for one in model[name])
        counts = (f"{found[key][name]:,.0f}" for key in ("lanes", "simulations"))
        told = f"{of}: {value:.3f} % [{low:.3f}, {high:.3f}]"
        rows.append([what, f"{found['processor_seconds'][name]:,.0f} s", *counts, told])
    for name in ("layer-wise", "data-aware", "data-unaware"):
        runs = f"{found['injection']['weights'][name]:,}"
        rows.append([f"{name} injection into the filters, 1 % margin", "", "", runs, ""])
    return table(["", "processor time", "lanes", "simulations", "the model's factor (MVF)"], rows)


def shares(found: Found) -> list[str]:
    """Return what leaving out channels costs, in percentage points."""
    named = {"cvf": "CVF", "lvf": "LVF", "mvf": "MVF"}
    rows = [
        [f"{how} error of {named[of]}", *(points(one[f"{of}_{key}"], 3) for one in found["repetitions"].values())]
        for of in named
        for how, key in (("mean absolute", "mae"), ("largest", "max"))
    ]
    return table(["share of the channels", *found["repetitions"]], rows)


def refinements(found: Found) -> list[str]:
    """Return what each departure from the published method is worth: errors of CVF in percentage points."""
    rows, kinds = [], ("weights", "activations")
    for name in dict.fromkeys(key.partition(", ")[2] for key in found["refinements"]):
        told = {"all": "all", "published": "none (`PUBLISHED`)"}.get(name, f"all but `{name.removeprefix('no ')}`")
        mine = [found["refinements"][f"{kind}, {name}"] for kind in kinds]
        cells = [(points(one["cvf_mae"], 3), f"{one['cvf_spearman']:.3f}", f"{one['lanes']:,}") for one in mine]
        rows.append([told, *cells[0], *cells[1]])
    constant = [found["refinements"][f"{kind}, all"]["constant_mae"] for kind in kinds]
    rows.append(["best constant", points(constant[0], 3), "", "", points(constant[1], 3), "", ""])
    of = ("filters: error", "rank correlation", "lanes", "what layers read: error", "rank correlation", "lanes")
    return table(["refinements", *of], rows)


def stability(found: Found) -> list[str]:
    """Return the factor of the model by batch of images, in percent."""
    told = found["stability"]
    heads = ["batch of 100 test images", *map(str, range(1, len(told["batches"]) + 1)), "all 1,000"]
    values = [*told["batches"], told["all_1000"]]
    return table(heads, [["MVF, %", *(f"{100 * value:.3f}" for value in values)]])


def closure(found: Found) -> list[str]:
    """Return the lanes of complete factors by the campaign and by the search, and how far these are apart."""
    rows = [
        [name, f"{one['lanes']['search']:,}", f"{one['lanes']['campaign']:,}", f"{one['largest_difference']:.1g}"]
        for name, one in found["closure"].items()
    ]
    return table(["", "search, lanes", "campaign, lanes", "largest difference by channel"], rows)
