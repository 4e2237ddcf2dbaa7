"""An evaluation, from the command line to the results."""
import argparse
import csv
import json
import logging
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist
from timm import utils
from timm.layers import set_fast_norm

from ..checkpoint import CheckpointError, load_weights, saved_options
from ..data.datasets import DataError, check_classes
from ..data.shards import open_dataset
from . import build, loaders, reporting
from .config import OptionError, parse_validate_args
from .engine import evaluate

# What of a run decides how its checkpoint is to be evaluated.
_OPTIONS_OF_RUN = (
    'model', 'num_classes', 'in_chans', 'img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'crop_mode', 'gp', 'model_kwargs', 'class_map', 'input_img_mode', 'input_key', 'target_key')

_logger = logging.getLogger('validate')


def main(argv: Optional[List[str]] = None) -> None:
    """validate.py with a command line of one's own; see run."""
    run(parse_validate_args(argv))


def run(args: argparse.Namespace) -> None:
    """validate.py. Exit status 2 for options, data or checkpoints that cannot be used."""
    try:
        results = validate(args)
    except (OptionError, DataError, CheckpointError) as error:
        reporting.exit_with_error(2, error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if utils.is_primary(args):
        if args.results_file:
            write_results(args.results_file, results, args.results_format)
        print(f'--result\n{json.dumps(results, indent=4)}')


def validate(args: argparse.Namespace) -> Dict[str, Any]:
    """Evaluate as the options say.

    Returns:
        Top-1 and top-5 accuracy and error in percent, mean cross-entropy, and what was evaluated.
    """
    reporting.setup_logging(primary=utils.world_info_from_env()[1] == 0)
    if args.checkpoint:
        adopt_options(args, saved_options(args.checkpoint))
    device = build.init_device(args)
    precision = build.build_precision(args, device)
    utils.random_seed(args.seed)
    if args.fast_norm:
        set_fast_norm()

    model = build.create_named_model(
        args.model,
        pretrained=args.pretrained or not args.checkpoint,
        num_classes=args.num_classes,
        in_chans=build.input_channels(args),
        global_pool=args.gp,
        **args.model_kwargs,
    )
    if args.checkpoint:
        load_weights(args.checkpoint, model, args.use_ema)
    param_count = sum(parameter.numel() for parameter in model.parameters())
    _logger.info(f'Model {args.model} created, param count: {param_count}')
    data_config = build.build_data_config(args, model, use_test_size=not args.use_train_size)
    model = model.to(device=device, dtype=precision.model_dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    num_classes = model.num_classes
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)

    dataset = open_dataset(
        args.dataset,
        root=args.data_dir,
        split=args.split,
        download=args.dataset_download,
        class_map=args.class_map,
        num_samples=args.num_samples,
        input_key=args.input_key,
        input_img_mode=loaders.image_mode(args, data_config),
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed,
    )
    check_classes(dataset, None, num_classes, args.class_map)
    loader = loaders.build_eval_loader(
        args, dataset, data_config, device, precision, args.batch_size, model, args.crop_border_pixels)
    metrics = evaluate(
        model, loader, args, device, precision, args.log_freq,
        on_log=reporting.log_evaluation_step('Test') if utils.is_primary(args) else None)

    results = OrderedDict(
        model=args.model,
        top1=round(metrics['top1'], 4), top1_err=round(100 - metrics['top1'], 4),
        top5=round(metrics['top5'], 4), top5_err=round(100 - metrics['top5'], 4),
        param_count=round(param_count / 1e6, 2),
        img_size=data_config['input_size'][-1],
        crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'],
        loss=metrics['loss'],
    )
    if args.checkpoint:
        results['checkpoint'] = args.checkpoint
    _logger.info(f" * Acc@1 {results['top1']:.3f} ({results['top1_err']:.3f}) "
                 f"Acc@5 {results['top5']:.3f} ({results['top5_err']:.3f})")
    return results


def adopt_options(args: argparse.Namespace, saved: Dict[str, Any]) -> None:
    """Evaluate a checkpoint as the run that wrote it did, but for what the command line says."""
    if not saved:
        return
    explicit = set(args.explicit)
    if explicit & {'img_size', 'input_size', 'in_chans'}:
        explicit |= {'img_size', 'input_size', 'in_chans'}
    adopted = {name: saved[name] for name in _OPTIONS_OF_RUN if name in saved and name not in explicit}
    if 'batch_size' not in explicit:
        adopted['batch_size'] = saved.get('validation_batch_size') or saved.get('batch_size') or args.batch_size
    adopted['use_train_size'] = True
    changed = {name: value for name, value in adopted.items() if value != getattr(args, name)}
    if changed:
        _logger.info('From the checkpoint: ' + ', '.join(f'{name} {value}' for name, value in changed.items()))
    vars(args).update(adopted)


def write_results(path: str, results: Dict[str, Any], format: str = 'csv') -> None:
    """Write the results to a file, as one CSV row under a header or as JSON."""
    with open(path, 'w', newline='') as f:
        if format == 'json':
            json.dump(results, f, indent=4)
            return
        writer = csv.DictWriter(f, fieldnames=results.keys())
        writer.writeheader()
        writer.writerow(results)
