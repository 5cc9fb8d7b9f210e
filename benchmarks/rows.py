"""The tables of the documents, as lines of Markdown, from what benchmarks print."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "accelerators",
    "certify",
    "coverage",
    "economy",
    "engine",
    "estimators",
    "hardening",
    "networks",
    "percent",
    "points",
    "precision",
    "record",
    "representations",
    "resolvers",
    "scaling",
    "table",
    "truth",
    "upset_costs",
]

Found = Mapping[str, Any]
_NETWORKS = {"digits": "digits", "digits_cnn": "the digits CNN", "resnet20": "ResNet-20", "resnet32": "ResNet-32"}
_TARGETS = {"w": "weights", "o": "outputs"}
_RESOLVED = ("pooled", "closure", "certified")
_SHARES = ("coverage", "coverage_of_sites", "coverage_of_the_worst_site")
_BITS = {"mantissa, 0 to 7": range(8), "8 to 15": range(8, 16), "16 to 22": range(16, 23)}
_BITS |= {"exponent, 23 to 29": range(23, 30), "30": range(30, 31), "sign": range(31, 32)}
_CODES = {
    "joint": "drawn together (`corrected`)",
    "bit30-R": "always bit 30, random neuron",
    "bit30-I": "always bit 30, important neuron",
    "bit30-I+": "always bit 30, important and positive, as `rising`",
}


def percent(one: Mapping[str, float]) -> str:
    """Return an estimate with its bounds, or alone where these are the same.

    >>> percent({"value": 0.5, "low": 0.5, "high": 0.5}), percent({"value": 0.5, "low": 0.25, "high": 0.75})
    ('50.0 %', '50.00 % [25.00, 75.00]')
    """
    if one["low"] == one["high"]:
        return f"{100 * one['value']:.1f} %"
    return f"{100 * one['value']:.2f} % [{100 * one['low']:.2f}, {100 * one['high']:.2f}]"


def points(share: float, digits: int) -> str:
    """Return a share in percentage points.

    >>> points(0.00028, 3)
    '0.028'
    """
    return f"{100 * share:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table of Markdown.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def engine(found: Found) -> list[str]:
    """Return what lanes and concurrent faults cost, and that they agree with the slow reference."""
    cost, rate, many, agreed = (found[key] for key in ("lane_cost", "lanes_per_second", "overhead", "agreement"))
    ties = f", {agreed['ties']} of them ties" if agreed["disagreements"] else ""
    rows = [
        *(
            [f"one fault in {what}", f"{cost[kind]:.2f} of a golden image at batch 128; {rate[kind]:,} faults a second"]
            for kind, what in (("weights", "a weight"), ("inputs", "the input of a convolution"))
        ),
        *_more_lanes(found),
        *(
            [f"100,000 faults in {kind} at once, each with its own bit", _ratios(many, kind)]
            for kind in ("weights", "activations")
        ),
        [
            "agreement with editing the word and running the model",
            f"{agreed['trials']:,} trials on four networks, by both executors: {agreed['disagreements']} "
            f"disagreements{ties}",
        ],
        ["peak memory under a budget of 256 MiB", f"{found['peak_mib']:.0f} MiB"],
    ]
    return table(["", ""], rows)


def _more_lanes(found: Found) -> list[list[str]]:
    """Return what lanes cost on one thread and with several faults, as far as a record tells."""
    rows = []
    if one := found.get("lane_cost_batch1"):
        rows.append(
            [
                "one fault on one thread, in passes of one image",
                f"{one['weights']:.2f} in a weight, {one['inputs']:.2f} in an input",
            ]
        )
    for key, where in (("multi_fault", "anywhere"), ("multi_fault_layer", "in one layer")):
        if many := found.get(key):
            cells = ", ".join(f"{n} faults {ratio:.1f}" for n, ratio in many.items())
            rows.append([f"several weights of a lane, {where}, in lanes of one", cells])
    return rows


def _ratios(overhead: Found, kind: str) -> str:
    named = {"cnn": "a small CNN", "resnet18": "ResNet-18"}
    return "; ".join(f"{kinds[kind]['100000']:.2f} of a golden pass, {named[name]}" for name, kinds in overhead.items())


def coverage(found: Found) -> list[str]:
    """Return how often intervals hold the truth, of the campaigns that give every trial a lane of its own."""
    heads = ["campaign", "trials", "bias", "coverage", "of sites", "worst site", "price"]
    names = [name for name in found["coverage"] if not _saves_lanes(name)]
    return table(heads, [[name, *_counted(found, name, ("trials",)), *_held(found, name)] for name in names])


def resolvers(found: Found) -> list[str]:
    """Return the same of the campaigns with fewer lanes than trials, and which intervals missed by an assumption."""
    heads = ["campaign", "trials", "lanes", "bias", "coverage", "of sites", "worst site", "price", "missed by it"]
    names = [name for name in found["coverage"] if _saves_lanes(name)]
    rows = [
        [name, *_counted(found, name, ("trials", "lanes")), *_held(found, name), f"{found['astray'][name]:.0f}"]
        for name in names
    ]
    return table(heads, rows)


def _saves_lanes(name: str) -> bool:
    return any(word in name for word in _RESOLVED)


def _counted(found: Found, name: str, columns: Sequence[str]) -> list[str]:
    return [f"{found[column][name]:,.0f}" for column in columns]


def _held(found: Found, name: str) -> list[str]:
    bias = found["bias"].get(name)
    shares = [found[key].get(name) for key in _SHARES]
    told = ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
    return ["none exists" if bias is None else f"{bias:+.2f}", *told, f"{found['price'][name]:.2f}"]


def economy(found: Found) -> list[str]:
    """Return the lanes of every method for every width, and by how much these are fewer than layer-wise ones."""
    heads = ["", "every layer within 1 point", "within 0.25 points", "the model within 0.05 points"]
    lanes, widths = found["lanes"], ("layer_1.0", "layer_0.25", "model_0.05")
    rows = []
    for method in lanes[widths[0]]:
        cells = [_fewer(lanes[width].get(method), lanes[width]["layer-wise"]) for width in widths]
        rows.append([method, *cells])
    return table(heads, rows)


def _fewer(count: int | None, most: int) -> str:
    if count is None:
        return "-"
    return f"{count:,}" if count >= most else f"{count:,} ({most / count:.1f})"


def precision(found: Found) -> list[str]:
    """Return the share of critical faults among the first 100 by code, on every network and target."""
    heads = ["network, target", "code", "at 5 %", "at 25 %", "ratio to `uniform`"]
    rows = []
    for name, codes in found["precision"].items():
        for target, what in _TARGETS.items():
            mine = {code[:-1]: by for code, by in codes.items() if code.endswith(target)}
            base = [one["value"] for one in mine["uniform"].values()]
            for code in sorted(mine, key=lambda code: next(iter(mine[code].values()))["value"]):
                cells = [percent(one) for one in mine[code].values()]
                ratios = [one["value"] / least for one, least in zip(mine[code].values(), base, strict=True) if least]
                told = " to ".join(sorted({f"{one:.1f}" for one in ratios}, key=float)) or "-"
                rows.append([f"{_NETWORKS[name]}, {what}", _CODES.get(code, f"`{code}`"), *cells, told])
    return table(heads, rows)


def record(found: Found) -> list[str]:
    """Return what the failure rate of ResNet-20 within a margin takes, by statistical injection and by ours."""
    told = found["record"]
    named = {
        "conservative": "conservative plan (p = 0.5), computed: faults, each on all images",
        "iterative": "iterative, computed at the rate itself: faults, each on all images",
        "published": "iterative, as published (66 % fewer than conservative): faults, each on all images",
    }
    least = told["published"] or told["iterative"]
    rows = [[what, f"{told[key]:,}", "", ""] for key, what in named.items() if told[key] is not None]
    for name, one in told["ours"].items():
        what = f"`{name}`, run: lanes, one fault on one image each"
        rows.append([what, f"{one['lanes']:,}", f"{least / one['lanes']:.0f} times fewer", percent(one["rate"])])
    return table(["", "for a margin of 0.01 points", "than published", "failure rate"], rows)


def accelerators(found: Found) -> list[str]:
    """Return what every accelerator makes of two networks."""
    rows = []
    for name, chips in found["ra"].items():
        for chip, ra in chips.items():
            cells = [percent(found["sa"][name][chip]), percent(ra), percent(found["ra_sw"][name][chip])]
            rows.append([_NETWORKS[name], f"`{chip}`", *cells])
    return table(["network", "accelerator", "SA", "RA", "RA_SW"], rows)


def upset_costs(found: Found) -> list[str]:
    """Return what a lane of a campaign of upsets costs.

    >>> cost = {"images": 9, "lanes": 4096, "memory": "1GiB", "first": 0.5, "golden_images": 0.333}
    >>> upset_costs({"cost": [cost]})[-1]
    '| 9 | 4,096 | 1GiB | 0.50 | 0.33 |'
    """
    rows = [
        [f"{one['images']:,}", f"{one['lanes']:,}", one["memory"], f"{one['first']:.2f}", f"{one['golden_images']:.2f}"]
        for one in found["cost"]
    ]
    return table(["images", "upsets", "memory", "first campaign", "the next"], rows)


def estimators(found: Found) -> list[str]:
    """Return how many samples each estimator of RA needs, and how often its intervals hold the truth."""
    names = list(next(iter(next(iter(found["samples"].values())).values())))
    rows = []
    for network, modes in found["samples"].items():
        for mode, medians in modes.items():
            shown = ["more" if n is None else f"{n:,}" for n in medians.values()]
            rows.append([f"{_NETWORKS[network]}, {mode}: samples", *shown])
    for network, modes in found["coverage"].items():
        for mode, covered in modes.items():
            rows.append([f"{_NETWORKS[network]}, {mode}: coverage", *(f"{100 * c:.1f} %" for c in covered.values())])
    many, few = found["truth"]["resnet20"], found["truth"]["digits"]["records"]
    truth = f"The truth: of the digits network {100 * few:.2f} %, exactly; of ResNet-20 {percent(many)}"
    told = f"{truth} by a run of {many['lanes']:,} lanes, and {100 * many['records']:.2f} % by its records alone."
    return [*table(["", *(f"`{name}`" for name in names)], rows), "", told]


def representations(found: Found) -> list[str]:
    """Return what lanes in every representation cost, and that they agree with the slow reference."""
    heads = (
        "representation",
        "struck",
        "executor",
        "faults",
        "lanes per second",
        "over float32",
        "agreement with the reference",
    )
    lines = []
    for row in found["rows"]:
        share = 100 * (row["trials"] - row["disagreements"]) / row["trials"]
        notes = [f", {row[key]} {what}" for key, what in (("detected", "detected"), ("ties", "tied")) if row[key]]
        counts = (f"{row[key]:,}" for key in ("faults", "lanes_per_second"))
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        told = f"{share:.3g} % of {row['trials']}{''.join(notes)}"
        lines.append((row["representation"], row["target"], row["executor"], *counts, ratio, told))
    return table(heads, lines)


def networks(found: Found) -> list[str]:
    """Return what networks of real size take."""
    named = {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2", "vit_b_16": "ViT-B/16", "gpt2": "GPT-2, 124 M"}
    heads = ("network", "start", "golden image", "lane of weights", "lane of inputs", "peak", "disagreements of 200")
    lines = []
    for name, one in found["networks"].items():
        ratios = [f"{one['ratio'][kind]:.2f}" for kind in ("weights", "inputs")]
        wrong = f"{one['disagreements']}" + (f", {one['ties']} of them ties" if one["ties"] else "")
        cells = (f"{one['start_s']} s", f"{one['golden_s']:.3f} s", *ratios, f"{one['peak_mib']:,} MiB", wrong)
        lines.append((named[name], *cells))
    return table(heads, lines)


def scaling(found: Found) -> list[str]:
    """Return what workers, drivers, stores and reports of millions of trials manage, to size a campaign by."""
    lanes, written, paper = found["lanes_per_second"], found["writer_rows_per_second"], found["thousand_workers"]
    rows = [
        *([f"ResNet-20, {mode}", f"{rate:,} lanes of weights a second"] for mode, rate in lanes.items()),
        ["two workers, of twice one", f"{100 * found['efficiency_2']:.0f} %"],
        ["one driver", f"{found['driver_trials_per_second']:,.0f} trials a second"],
        *([f"one writer, {name}", f"{rate:,.0f} trials a second"] for name, rate in written.items()),
        ["a million trials, SQLite", f"{found['bytes_per_million'] / 1e6:.1f} MB"],
    ]
    for command in ("show", "report"):
        seconds, peak = (found[f"{command}_10m_{what}"] for what in ("seconds", "peak_mib"))
        rows.append([f"`{command}` of ten million trials", f"{seconds:.1f} s, {peak:,.0f} MiB"])
    busy = f"{paper['busy_workers']:,} workers, then {paper['bottleneck']}"
    return table(["", ""], [*rows, ["on paper, what one driver keeps busy with this network", busy]])


def hardening(found: Found) -> list[str]:
    """Return what every method gains and costs on every network, and what to protect."""
    lines: list[str] = []
    for name, board in found.get("leaderboard", {}).items():
        kinds = list(dict.fromkeys(kind for row in board.values() for kind, one in row.items() if _compares(one)))
        heads = [name, *(f"fewer in {kind}" for kind in kinds), "accuracy", "latency at 128, 1", "memory"]
        fits = {method: row for method, row in board.items() if "refused" not in row}
        lines += [*table(heads, [[method, *_hardened(row, kinds)] for method, row in fits.items()]), ""]
        lines += [f"- {method} refuses: {row['refused']}." for method, row in board.items() if "refused" in row]
        lines += [""] if len(fits) < len(board) else []
        if told := board.get("recipe", {}).get("chosen"):
            lines += [
                f"Recipe of {name}: {told['name']}; chosen among {told['of']} on known images, by draws other than the "
                f"table's, in which at least {told['fewer']:.3g} times fewer failed, {100 * told['changed']:.2f} % of "
                f"the clean answers changed, and a pass took {100 * told['latency']:.1f} % longer.",
                "",
            ]
    if told := found.get("protection"):
        lines += [*_protection(told), ""]
    return lines[: -1 if lines and not lines[-1] else None]


def checksums(found: Found) -> list[str]:
    """Return what checksums see of what goes wrong in convolutions, and what they cost."""
    told = found["abft"]
    value, low, _, failed = told["coverage"]
    alarms, clean, most = told["false_alarms"]
    cost = f"{_slower(told).removeprefix('+')} of the pass at batch 128"
    if "latency_at_work" in told:
        cost = f"{cost} on standby ({100 * told['latency_at_work']:.1f} % at work)"
    return [
        f"Checksums of ResNet-20's convolutions saw {100 * value:.2f} % (at least {100 * low:.2f} %) of {failed} "
        f"flips that change an answer, for {cost}, with {alarms} alarms on {clean:,} clean inputs (at most {most:.1e} "
        "of them).",
        *(
            f"Those of attention raised {alarms} on {clean:,} inputs in {dtype} (at most {most:.1e} of them)."
            for dtype, (alarms, clean, most) in told["attention"].items()
        ),
    ]


def _compares(one: Any) -> bool:
    return isinstance(one, Mapping) and "ratio" in one


def _hardened(row: Found, kinds: Sequence[str]) -> list[str]:
    cells = ["-" if kind not in row else _fewer_fail(row[kind]) for kind in kinds]
    slower = f"{_slower(row)}, {100 * row['latency_single']:+.0f} %"
    return [*cells, f"{100 * row['accuracy_change']:+.2f}", slower, f"{100 * row['memory']:+.2f} %"]


def _slower(row: Found) -> str:
    bounds = ", ".join(f"{100 * end:.1f}" for end in row.get("latency_bounds", ()))
    return f"{100 * row['latency']:+.1f} %" + (f" [{bounds}]" if bounds else "")


def _fewer_fail(one: Found) -> str:
    found = (one[key] for key in ("ratio", "low", "high"))
    value, low, high = (None if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in found)
    return f"{value or ('all' if one['before'] else '-')} [{low}, {high or '-'}]"


def _protection(told: Found) -> list[str]:
    share = "more than was tried" if told["share_95"] is None else f"{100 * told['share_95']:.2g} %"
    heads = [
        "ResNet-20: memory added for 95 % fewer failures",
        "removed by 1 %",
        "left, foretold",
        "left, measured anew",
    ]
    removed, predicted, measured = (told[key] for key in ("removed", "predicted", "measured"))
    cells = [
        f"{100 * removed[0]:.1f} % [at least {100 * removed[1]:.1f}]",
        f"{100 * predicted[0]:.3f} % [at most {100 * predicted[1]:.3f}]",
        f"{100 * measured[0]:.3f} % [{100 * measured[1]:.3f}, {100 * measured[2]:.3f}]",
    ]
    return table(heads, [[share, *cells]])


def certify(found: Found) -> list[str]:
    """Return the share of weight faults that is certified, by stage and bits."""
    rows = []
    for stage, by_bit in found["certified"].items():
        shares = [sum(by_bit[str(bit)] for bit in bits) / len(bits) for bits in _BITS.values()]
        rows.append([f"`{stage}`", *(f"{points(share, 1)} %" for share in (*shares, found["stages"][stage]))])
    told = (
        f"{points(found['share'], 1)} % of all; a proof costs {found['cost_ratio']:.3f} of a lane, the set-up of "
        f"{found['set_up_lanes']:,} lanes spread over {found['trials']:,} trials included; {found['disagreements']} of "
        f"{found['checked']:,} that were run came out otherwise."
    )
    return [*table(["stage", *_BITS, "all bits"], rows), "", told]


def truth(found: Found) -> list[str]:
    """Return what is known of every fault of some layers, and what estimators make of it."""
    known = ", ".join(f"`{name}` {points(value, 3)} %" for name, value in found["layers"].items())
    told = (
        f"{found['faults']:,} faults, {found['outcomes']:,} outcomes, {points(found['exact'], 2)} % of them exact; "
        f"{found['enumerated']:,} of words enumerated in full refute {found['refuted']} that rest on monotony and "
        f"{found['disproved']} that are proven. Failing: {known}."
    )
    rows = [
        [name, f"{one['trials']:,}", f"{one['lanes']:,}", f"{one['bias_se']:+.2f}", f"{points(one['coverage'], 1)} %"]
        for name, one in found["estimators"].items()
    ]
    return [told, "", *table(["campaign", "trials", "lanes", "bias", "coverage"], rows)]
