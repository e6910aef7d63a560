"""What is wrong with the files below rules/ that commands read beside the rules: hardware, prices,
models, tools, trainers, ...

The readers themselves are asked, so that what a command would refuse is found, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from advisor.data.amounts import data_requirements
from advisor.data.formats import formats
from advisor.estimate.model.layouts import layouts
from advisor.ground.errors import Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.resources import rules_dir
from advisor.methods.families import families
from advisor.methods.kernels import accelerators
from advisor.methods.links import links
from advisor.methods.other_keys import other_keys
from advisor.methods.remedies import remedy
from advisor.methods.rewards import rollout_warnings
from advisor.methods.strategies import strategies
from advisor.methods.trainers import trainers
from advisor.probe.gpu_files import catalogue_gpus, cuda_facts, not_supported_devices
from advisor.record.verdict import limits
from advisor.situation import chat_templates
from advisor.situation.catalogue import (
    NOT_ORGANISATIONS,
    catalogue_entry,
    organisation_models,
    suggested_models,
    typical_sizes,
)
from advisor.situation.scope import scope_file

Reader = Callable[[], object]
ONE_FILE: tuple[Reader, ...] = (
    catalogue_gpus,  # all GPUs and prices
    cuda_facts,
    links,
    accelerators,
    not_supported_devices,
    typical_sizes,
    suggested_models,
    families,
    layouts,
    strategies,
    trainers,
    rollout_warnings,
    data_requirements,
    formats,
    chat_templates.families,
    limits,
    scope_file,
    other_keys,
)


def catalogue_faults() -> tuple[Fault, ...]:
    """Every fault of every file, each once."""
    found: dict[str, Fault] = {}
    for read in _readers():
        try:
            read()
        except InputError as error:
            found |= {fault.headline: fault for fault in error.faults}
    return tuple(found.values())


def _readers() -> Iterator[Reader]:
    yield from ONE_FILE
    for name in _stems("remedies"):
        yield partial(remedy, name)
    for extra in extras().values():
        for catalogue in extra.catalogues():
            yield from catalogue.readers
    for stem in _stems("models"):
        if stem not in NOT_ORGANISATIONS:
            yield partial(_models, stem)


def _models(stem: str) -> None:
    for hub_id in organisation_models(stem):
        catalogue_entry(hub_id)


def _stems(folder: str) -> list[str]:
    return sorted(path.stem for path in (rules_dir() / folder).glob("*.yaml"))
