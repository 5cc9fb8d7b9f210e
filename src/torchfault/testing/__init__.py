"""Conformance suites for what others add, from samplers and word formats to databases and methods of hardening.

Each names the broken rule. Call them in a test; the table of built-ins in
``tests/testing/test_conformance.py`` shows how.
"""

from torchfault.hardware.conformance import check_accelerator
from torchfault.testing.criteria import check_criterion
from torchfault.testing.examples import example_campaign, example_record
from torchfault.testing.executors import check_executor
from torchfault.testing.faults import check_fault_model
from torchfault.testing.hardening import check_hardening
from torchfault.testing.samplers import check_sampler
from torchfault.testing.storages import check_storage
from torchfault.testing.stores import check_store
from torchfault.testing.words import check_word_format

__all__ = [
    "check_accelerator",
    "check_criterion",
    "check_executor",
    "check_fault_model",
    "check_hardening",
    "check_sampler",
    "check_storage",
    "check_store",
    "check_word_format",
    "example_campaign",
    "example_record",
]
