"""Ctrl-C amid a transaction comes after it, and leaves no database locked."""

import signal
import sys
import threading

import pytest

from torchfault.store import Store
from torchfault.store.interrupts import uninterrupted
from torchfault.testing import example_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to the process")


def test_what_was_begun_is_ended_first():
    done = []

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
            signal.raise_signal(signal.SIGINT)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_transaction_is_whole_and_locks_nothing(tmp_path):
    with Store(tmp_path / "a.db") as store:
        store.create(example_record("first"))

        def work():
            store._write(lambda *_: signal.raise_signal(signal.SIGINT))

        with pytest.raises(KeyboardInterrupt):
            work()
        store.finish("first")
        assert store.campaign("first").status == "finished"


def test_other_threads_and_ignored_signals_are_left_alone():
    kept = []
    thread = threading.Thread(target=lambda: kept.append(uninterrupted().__enter__()))
    thread.start()
    thread.join()
    assert kept == [None]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
