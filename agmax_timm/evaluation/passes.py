"""Passes of validate.py over its data."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from ..base.distributed import is_primary
from ..data.augmentation.transforms import change_transforms
from ..options.parsers import ValidateOptions
from . import bulk
from .evaluate import evaluate
from .evaluated_model import EvaluatedModel, build_loader
from .log import log_steps
from .metrics import create_evaluator
from .robustness.seeding import SeededDataset


@dataclass
class Evaluation:
    """A model and its data."""
    subject: EvaluatedModel
    dataset: Dataset

    @property
    def options(self) -> ValidateOptions:
        return self.subject.options

    def run(
            self,
            name: str,
            dataset: Dataset | None = None,
            change: Callable[[Any], Any] | None = None,
            perturb: Callable | None = None,
            **data_config,
    ) -> dict[str, float]:
        """Return the metrics of one pass over the data.

        Args:
            dataset: Data set; None for that of the evaluation.
            change: Function from the evaluation transform to the one to use, which is then seeded by sample.
            perturb: Argument of evaluate().
            **data_config: Values that replace those of the model's data configuration.
        """
        subject, dataset = self.subject, dataset or self.dataset
        source = SeededDataset(dataset, self.options.seed) if change is not None else dataset
        loader = build_loader(replace(subject, data_config={**subject.data_config, **data_config}), source)
        if change is not None:
            change_transforms(source, change)
        evaluator = create_evaluator(self.options, dataset, loader, subject.num_classes, subject.device)
        return self.evaluate(name, loader, evaluator, perturb)

    def evaluate(self, name: str, loader: Any, evaluator: Any, perturb: Callable | None = None) -> dict[str, float]:
        """Return the metrics of one pass over a loader. Without a name, nothing is logged."""
        bulk.release_memory()  # each loader has its own stream, and torch keeps memory for each stream
        subject = self.subject
        return evaluate(
            subject.model, loader, subject.options, subject.device, subject.precision, subject.options.log_freq,
            on_log=log_steps(name) if name and is_primary() else None, evaluator=evaluator, perturb=perturb,
            before_compute=partial(bulk.check_ranks, subject.device))
