"""One run that is reported: what its folder holds, and the evaluation of its best weights."""
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..assembly import model as build
from ..base.errors import DataError, OptionError
from ..data.pictures import ToPicture
from ..data.sources.classes import class_names
from ..evaluation.analysis import Analysis
from ..evaluation.evaluate import outputs_of
from ..evaluation.evaluated_model import EvaluatedModel, build_loader, open_data, prepare
from ..evaluation.log import log_steps
from ..evaluation.metrics import create_evaluator
from ..evaluation.outcomes import Mistake, Outcomes
from ..options import timm_names
from ..options.declare import declared
from ..options.parse import read_config, validate_options
from ..options.parsers import ValidateOptions, train_parser
from ..options.recipe import portable
from ..training.output import log, run_folder
from ..weights.checkpoint import (
    STATE,
    choose_ema,
    describe_weights,
    find_file,
    metadata_in,
    read_checkpoint,
    saved_options,
)
from ..weights.measured import has_own_statistics

_logger = logging.getLogger('train')
TITLES = {'top1': 'top-1 (%)', 'top5': 'top-5 (%)', 'map': 'mAP (%)', 'micro_f1': 'micro F1 (%)',
          'macro_f1': 'macro F1 (%)', 'sample_f1': 'sample F1 (%)', 'loss': 'loss'}


@dataclass
class ReportedRun:
    """Content of the folder of a run."""
    folder: str
    given: dict[str, Any]  # options of args.yaml, as the user gave them: for the command and the recipe
    options: dict[str, Any]  # options of the best checkpoint, as the run resolved them: for its data and its evaluation
    checkpoint: str
    metadata: dict[str, Any]  # metadata of the checkpoint
    use_ema: bool
    metrics: dict[str, float]  # metrics of the weights during training; empty if there are none
    epoch: int | None  # epoch of the best checkpoint
    cost: dict[str, Any]  # 'seconds', 'images_per_second', 'device' and 'date' of the run; empty if they are not known

    @property
    def curves(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Curves of summary.csv; none if the file is missing."""
        return log.read_curves(run_folder.summary_path(self.folder))

    @property
    def spent(self) -> dict[str, str]:
        """Time, speed, device and date of the run by title; empty if they are not known."""
        cost = self.cost
        known = cost.get('images_per_second')  # 0 if no batch was left after a resume
        return cost and {
            'wall time': tqdm.format_interval(cost['seconds']), **({'images/s': f'{known:.0f}'} if known else {}),
            'device': cost['device'], 'date': cost['date']}


@dataclass
class RunResults:
    """Results of the best weights on the validation data."""
    metrics: dict[str, float]
    images: int
    subject: EvaluatedModel
    class_names: list[str] | None
    analysis: Analysis | None = None  # only for one class per image
    mistakes: list[tuple[Mistake, str]] = field(default_factory=list)  # with file names

    @property
    def values(self) -> dict[str, str]:
        """Metrics as text by title, in the order of TITLES: top-1 or mAP first."""
        metrics = self.shown(self.metrics)
        values = {title: f'{metrics[name]:.4g}' if name == 'loss' else f'{metrics[name]:.2f}'
                  for name, title in TITLES.items() if name in metrics}
        if self.analysis is not None:
            support = self.analysis.per_class.support
            values.update({
                'majority class (%)': f'{100 * support.max().item() / max(1, support.sum().item()):.2f}',
                'macro F1 (%)': f"{100 * self.analysis.per_class.average('macro')[2]:.2f}",
                'calibration error (%)': f'{100 * self.analysis.calibration.error:.2f}'})
        return values

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics without top-5 if the model has ten classes or fewer, for which it says nothing."""
        return {name: value for name, value in metrics.items() if name != 'top5' or self.subject.num_classes > 10}


def read_run(run_dir: str, data_dir: str | None, use_ema: bool | None) -> ReportedRun:
    path = os.path.join(run_dir, 'args.yaml')
    if not os.path.isfile(path):
        raise OptionError(f"'{run_dir}' is not the folder of a run: it has no args.yaml")
    given, checkpoint = read_config(path, train_parser()), find_file(run_dir)
    options = {**vars(train_parser().parse_args([])), **saved_options(checkpoint)}
    if data_dir is not None:
        options['data_dir'] = data_dir
    use_ema = choose_ema(options, use_ema)
    _logger.info(f'{checkpoint}: {describe_weights(options, use_ema)}')
    best = read_checkpoint(checkpoint, mmap=True)
    last = os.path.join(run_dir, 'last.pth.tar')
    cost = ((read_checkpoint(last, mmap=True) if os.path.isfile(last) else best).get(STATE) or {}).get('cost', {})
    metadata = metadata_in(best)
    metrics = (metadata.get('metrics') or {}).get('ema' if use_ema else 'raw') or {}
    return ReportedRun(run_dir, given, options, checkpoint, metadata, use_ema, metrics, best.get('epoch'), cost)


def evaluate_run(
        run: ReportedRun,
        device: str,
        workers: int | None,
        in_run: bool = False,
        on_batch: Callable[[], None] = lambda: None,
) -> RunResults | None:
    """Evaluate the best weights, see make_report. Return None for a run without validation data."""
    if not in_run:
        timm_names.check_device(device)
    evaluation_device = torch.device(device) if in_run else build.init_device(device, single_process=True)
    if not run.options['val_split']:
        return None
    evaluation = evaluate(_evaluation_options(run, device, workers), evaluation_device, on_batch)
    _check_measured(run, evaluation)
    return evaluation


def _evaluation_options(run: ReportedRun, device: str, workers: int | None) -> ValidateOptions:
    saved = run.options
    options = {name: saved[name] for name, option in declared(ValidateOptions).items()
               if option.evaluation in ('data', 'machine', 'precision') and name in saved}
    if workers is not None:
        options['workers'] = workers
    return validate_options(
        **options, checkpoint=run.checkpoint, use_ema=run.use_ema, split=saved['val_split'],
        num_samples=saved['val_num_samples'], device=device)


@torch.inference_mode()
def evaluate(options: ValidateOptions, device: torch.device, on_batch: Callable[[], None]) -> RunResults:
    """Evaluate the checkpoint as validate.py does, and analyse the predictions."""
    subject = prepare(options, device)
    options = subject.options
    dataset = open_data(subject, _logger, 'give the data of the run, with the classes that it had')
    loader = build_loader(subject, dataset)
    evaluator = create_evaluator(options, dataset, loader, subject.num_classes, device)
    to_picture = ToPicture(subject.data_config, subject.patch_size, options.naflex_patchify_channels_first)
    outcomes = Outcomes(to_picture) if options.task == 'classification' else None
    outputs, images = outputs_of(subject.model, loader, options, device, subject.precision), 0
    for index, (input, output, target) in enumerate(outputs):
        images += len(output)
        evaluator.update(output, target)
        if outcomes is not None:
            outcomes.update(input, output, target)
        if index % options.log_freq == 0:
            log_steps('Report')(index, len(loader), evaluator.summary())
        on_batch()
    evaluation = RunResults(evaluator.compute(), images, subject, class_names(dataset))
    if outcomes is not None:
        evaluation.analysis = outcomes.analyse(subject.num_classes)
        evaluation.mistakes = [(mistake, _file_name(dataset, mistake.index)) for mistake in outcomes.mistakes]
    return evaluation


def _file_name(dataset: Any, index: int) -> str:
    """Return the name of a file of the data without folders of the machine, '' if samples have no names or no order."""
    try:
        return portable(dataset.reader.filename(index) or '')  # of hfds/: None, or an absolute path
    except (AttributeError, AssertionError, NotImplementedError):
        return ''


def _check_measured(run: ReportedRun, evaluation: RunResults) -> None:
    """Raise DataError if the metric differs from that of training by more than numerical error."""
    saved = run.options
    name = 'map' if saved['task'] == 'multilabel' else 'top1'
    before = run.metrics.get(name)
    if before is None or (saved['tta'] or 0) > 1 or has_own_statistics(saved, evaluation.subject.model.state_dict()):
        return
    now = evaluation.metrics[name]
    tolerance = max(1., 2 * 100. / max(1, evaluation.images))  # one point, or two images
    if abs(now - before) > tolerance:
        raise DataError(f"'{run.checkpoint}' has {name} {now:.4g} on '{saved['data_dir'] or saved['dataset']}', split "
                        f"'{saved['val_split']}', and training measured {before:.4g}: give the data of the run, with "
                        'the labels that it had')
