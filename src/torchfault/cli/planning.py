"""`plan`: what each method of statistical injection would cost."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import check_format, count, duration, print_frame, print_table, say, share, simple_table
from torchfault.config import Settings
from torchfault.config.build import build_campaign, build_engine, weights_of

if TYPE_CHECKING:
    from torchfault.campaign import Campaign

__all__ = ["plan_campaigns"]

_WARM, _MEASURED = 32, 512  # lanes: the first ones fill the golden cache


def plan_campaigns(settings: Settings, *, margin: float, speed: float | None, form: str) -> None:
    """Print the number of faults and lanes of each method, and the time that they would take."""
    from torchfault.sampling import Uniform, bits_from, plan

    check_format(form)
    uniform = settings.model_copy(update={"sampler": type(settings.sampler)()})
    engine = build_engine(uniform)
    campaign = build_campaign(uniform, engine)
    space = campaign.space
    values = weights_of(engine)
    bits = bits_from(space, values) if all(site.name in values for site in space.sites) else None
    inputs = 1 if campaign.metric is None else campaign.inputs
    lanes = {"inputs": inputs, "all_inputs": campaign.inputs}
    plan(space, margin=margin, bits=bits, rate=speed, **lanes)  # bad options show before time is spent
    rate = speed or inputs * _measured(replace(campaign, sampler=Uniform()))
    table = plan(space, margin=margin, bits=bits, rate=rate, **lanes)
    if form != "table":
        print_frame(table, form)
        return
    heads = {name: "left" if name == "method" else "right" for name in table.columns if name != "seconds"}
    shown: list[list[Any]] = table.to_numpy().tolist()
    rows = [
        [method, count(strata), count(trials), share(part), count(lanes), duration(seconds)]
        for method, strata, trials, part, lanes, seconds in shown
    ]
    print_table(simple_table({**heads, "time": "right"}, rows))
    how = "as given" if speed else f"as measured on {count(_MEASURED)} trials"
    say()
    say((f"  margin ±{100 * margin:g} % at 95 %; {count(round(rate))} lanes per second, {how}", "dim"))


def _measured(campaign: "Campaign") -> float:
    """Return the trials per second of a short campaign, once the golden cache is full."""
    from torchfault.campaign import run
    from torchfault.statistics import MaxTrials, TimeBudget

    run(replace(campaign, stop=MaxTrials(_WARM)), batch=_WARM)
    results = run(replace(campaign, stop=MaxTrials(_MEASURED) | TimeBudget(20.0)))
    return len(results) / max(results.record.seconds, 1e-9)
