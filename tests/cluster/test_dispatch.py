"""Shards go to whoever is free, again where a worker was lost, and whatever they raise comes back."""

import threading

import pytest

from torchfault.cluster.dispatch import Dispatch, LostError
from torchfault.errors import EngineError


def test_shards_go_out_in_order_and_a_lost_one_goes_first():
    dispatch, seen = Dispatch(1), []

    def loses_the_second(shard):
        seen.append(shard)
        if seen == [0, 1]:
            raise LostError
        return {"shard": shard}

    futures = [dispatch.submit(number) for number in range(4)]
    present = []

    def replace():
        present.append(dispatch.present)
        dispatch.serve(loses_the_second)

    dispatch.serve(loses_the_second, replace)
    assert [future.result(timeout=10)["shard"] for future in futures] == [0, 1, 2, 3]
    assert seen == [0, 1, 1, 2, 3]
    assert (present, dispatch.present) == ([0], 1)
    dispatch.close()


def test_a_shard_that_takes_three_workers_along_is_held_responsible():
    dispatch, hired = Dispatch(2), []

    def hire():
        hired.append(1)
        dispatch.serve(link, hire)

    def link(shard):
        if shard == "heavy":
            raise LostError
        return {"shard": [shard]}

    heavy, light = dispatch.submit("heavy"), dispatch.submit("light")
    hire()
    with pytest.raises(EngineError, match=r"3 workers ended amid the same 5 trials.*fewer workers"):
        heavy.result(timeout=10)
    assert light.result(timeout=10) == {"shard": ["light"]}
    assert len(hired) >= 3
    dispatch.close()


def test_what_a_shard_raises_is_raised_where_its_verdicts_are_awaited():
    dispatch = Dispatch(1)
    dispatch.serve(lambda shard: 1 / shard)
    wrong, right = dispatch.submit(0), dispatch.submit(2)
    with pytest.raises(ZeroDivisionError):
        wrong.result(timeout=10)
    assert right.result(timeout=10) == 0.5
    dispatch.close()


@pytest.mark.parametrize("how", ["close", "fail"])
def test_who_waits_at_the_end_is_told(how):
    dispatch, busy, free = Dispatch(1), threading.Event(), threading.Event()

    def link(_):
        busy.set()
        free.wait(10)
        raise LostError

    thread = dispatch.serve(link)
    out, waiting = dispatch.submit(1), dispatch.submit(2)
    assert busy.wait(10)
    dispatch.close() if how == "close" else dispatch.fail(EngineError("no machine left"))
    free.set()
    for future in (out, waiting, dispatch.submit(3)):
        with pytest.raises(EngineError, match="the workers have ended" if how == "close" else "no machine left"):
            future.result(timeout=10)
    thread.join(10)
    assert not thread.is_alive()


def test_workers_join_in_mid_run():
    dispatch, gate = Dispatch(2), threading.Event()

    def slow(shard):
        gate.wait(10)
        return shard

    dispatch.serve(slow)
    futures = [dispatch.submit(number) for number in range(5)]
    assert dispatch.present == 1
    dispatch.serve(lambda shard: shard)
    assert dispatch.present == 2
    assert [future.result(timeout=10) for future in futures[1:]] == [1, 2, 3, 4]
    gate.set()
    assert futures[0].result(timeout=10) == 0
    dispatch.close()
