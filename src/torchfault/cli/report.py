"""`report`: what campaigns found, as one HTML page, from the store alone, without torch."""

from collections.abc import Sequence
from pathlib import Path

from torchfault.cli.machine import campaign_told, print_object
from torchfault.cli.screen import count, next_steps, say, working
from torchfault.cli.showing import find, short, store_flag
from torchfault.errors import StoreError
from torchfault.files import check_target
from torchfault.text import file_name

__all__ = ["report_campaigns"]


def report_campaigns(names: Sequence[str], where: str, *, output: Path | None, force: bool, as_json: bool) -> None:
    """Write the report of some campaigns, or of the only one, to a file; the first is what others are compared with."""
    from torchfault.report.page import write_report
    from torchfault.results import load
    from torchfault.store import Store

    with Store(where, access="read") as store:
        chosen = list(dict.fromkeys(names)) or [find(store, None).name]
        target = output or Path(f"{file_name(chosen[0])}.html")
        if why := check_target(target, force=force):
            raise StoreError(f"the report '{target}' {why}")
        with working("reading the store"):
            results = [load(store, name) for name in chosen]
    with working("writing the report"):
        size = write_report(results, target, force=force)
    if as_json:
        told = [campaign_told(one.record) for one in results]
        print_object("report", {"campaigns": told, "file": str(target), "bytes": size})
        return
    say(f"report written to {short(str(target))} ({count(round(size / 1000))} kB): open it in a browser, or print it")
    next_steps([f"torchfault show {name}{store_flag(where)}" for name in chosen[:1]])
