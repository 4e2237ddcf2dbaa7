"""Classify images: python -m agmax_timm.predict MODEL IMAGES..."""
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from .base.command import command
from .base.command_line import Parser, flag_of
from .base.errors import OptionError
from .base.processes import imports_without_gc
from .base.text_file import BYTE_ORDER_MARK
from .options.shared_flags import add_model_flags, add_weights_flags

PROG = 'python -m agmax_timm.predict'


@command(PROG)
def main(argv: list[str] | None = None) -> int:
    """Run the command. Return the exit status: 0 if all images have predictions, else 1."""
    parser = create_parser()
    args = parser.parse_args(argv)
    if args.topk < 1 or args.batch_size < 1 or args.workers < 0:
        parser.error('--topk and --batch-size must be 1 or more, --workers 0 or more')
    with imports_without_gc():
        from .data.sources.classes import describe_names, describe_others
        from .evaluation.prediction import Predictor, image_endings
    options = _options(args)
    others: Counter = Counter()
    paths = list_images(args.images, image_endings(options.checkpoint), others)
    try:
        predictor = Predictor(options)
    except OptionError as error:
        if options.checkpoint:
            raise
        raise OptionError(str(error).replace('--model ', 'MODEL ')) from error  # it is an argument here, not a flag
    failed = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal failed
        for prediction in predictor.predict(paths, args.topk):
            failed += bool(prediction.error)
            yield _row(prediction, predictor.name_of)

    with _opened(args.output) as f:
        if predictor.weights:
            print(f'{PROG}: {predictor.weights}', file=sys.stderr)
        print(f'{PROG}: {len(paths)} images{describe_others(others)}; '
              f'{describe_names(predictor.class_names)}', file=sys.stderr)
        _FORMATS[args.format](rows(), f)
    if failed:
        print(f'{PROG}: {failed} of {len(paths)} images could not be predicted: see their error', file=sys.stderr)
    return int(failed > 0)


def list_images(names: list[str], endings: str | None = None, others: Counter | None = None) -> list[str]:
    """Return the paths of images. Names are files, folders, which are searched recursively, or '-' for stdin.

    Args:
        endings: Endings of images in folders, in the form of --input-key of train.py; None for timm's.
        others: Counter of the other files in folders by ending. It is updated in place.

    Raises:
        OptionError: there are no images.
    """
    from .data.sources.folder import FolderReader
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors='surrogateescape')  # file names may contain any bytes
    paths = []
    for name in names:
        from_stdin = (line.rstrip('\r\n').removeprefix(BYTE_ORDER_MARK) for line in sys.stdin)
        for path in from_stdin if name == '-' else [name]:
            if os.path.isdir(path):
                try:
                    reader = FolderReader(path, input_key=endings)
                    paths += reader.filenames(absolute=True)
                    if others is not None:
                        others.update(reader.other_files)
                except (RuntimeError, ValueError) as error:  # no images, or a circle of links
                    raise OptionError(f"'{path}': {error}") from error
            elif '\0' in path:
                raise OptionError('stdin: expected one path per line, got NUL: drop -print0 of find')
            elif path:
                paths.append(path)
    if not paths:
        raise OptionError('no images: stdin names none')
    return paths


def _options(args: Any) -> Any:
    """Return options of validate.py for the model of the command line."""
    from .evaluation.prediction import options_of
    from .weights.checkpoint import find_file
    common = dict(device=args.device, batch_size=args.batch_size, workers=args.workers, amp=args.amp)
    if os.path.exists(args.model_or_run):
        which = 'last' if args.last else 'best'
        if args.pretrained:
            raise OptionError(f"'{args.model_or_run}' is a file or folder, --pretrained is for a name in timm: drop it")
        if os.path.isfile(os.path.join(args.model_or_run, 'config.json')):
            raise OptionError(f"'{args.model_or_run}' is in timm's format: give it as 'local-dir:{args.model_or_run}'")
        return options_of(find_file(args.model_or_run, which), args.model, args.num_classes, args.model_kwargs or None,
                          use_ema=args.use_ema, **common)
    given = [flag_of(name) for name in ('last', 'model', 'num_classes', 'model_kwargs') if getattr(args, name)]
    if args.use_ema is not None:
        given.append('--use-ema' if args.use_ema else '--raw')
    if given:
        raise OptionError(f"no such file or folder: '{args.model_or_run}'; {', '.join(given)} need one")
    if not (args.pretrained or ':' in args.model_or_run):
        raise OptionError(f"no such file or folder: '{args.model_or_run}'; for the pretrained weights of a name in "
                          'timm add --pretrained')
    return options_of(model=args.model_or_run, **common)


def _row(prediction: Any, name_of: Callable[[int], str]) -> dict[str, Any]:
    if prediction.error:
        return dict(image=prediction.path, error=prediction.error)
    return dict(image=prediction.path, predictions=[
        {'class': name_of(index), 'index': index, 'probability': probability}
        for index, probability in zip(prediction.classes, prediction.probabilities)])


def _write_table(rows: Iterable[dict[str, Any]], f: IO) -> None:
    for row in rows:
        best = [f"{entry['class']} {entry['probability']:.4f}" for entry in row.get('predictions', ())]
        print('  '.join([row['image'], *(best or [f"error: {row['error']}"])]), file=f, flush=True)


def _write_csv(rows: Iterable[dict[str, Any]], f: IO) -> None:
    """Write a line per class of an image, with its rank from 1, or one line for an error."""
    writer = csv.writer(f, lineterminator='\n')
    writer.writerow(('image', 'rank', 'class', 'index', 'probability', 'error'))
    for row in rows:
        for rank, entry in enumerate(row.get('predictions', ()), 1):
            writer.writerow((row['image'], rank, *entry.values(), ''))
        if 'error' in row:
            writer.writerow((row['image'], '', '', '', '', row['error']))


def _write_json(rows: Iterable[dict[str, Any]], f: IO) -> None:
    json.dump(list(rows), f, indent=1)
    f.write('\n')


_FORMATS = {'table': _write_table, 'csv': _write_csv, 'json': _write_json}


@contextmanager
def _opened(path: str | None) -> Iterator[IO]:
    """Open a file that is replaced atomically, or stdout. File names may contain any bytes."""
    if path is None:
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors='surrogateescape')
        yield sys.stdout
        return
    from .base.atomic_write import replacing
    with replacing(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:
        yield f


def create_parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description='The most probable classes of images, preprocessed as validate.py does for the same weights.')
    parser.add_argument('model_or_run', metavar='MODEL', help="a run's folder, a checkpoint, hf_hub:OWNER/NAME, "
                        'local-dir:DIR, or with --pretrained a name in timm')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders, or - for paths on stdin')
    parser.add_argument('--topk', type=int, default=5, metavar='K', help='number of classes per image')
    parser.add_argument('--format', default='table', choices=tuple(_FORMATS), help='format of the output')
    parser.add_argument('--output', metavar='FILE', help='write to this file (default: stdout)')
    add_weights_flags(parser)
    parser.add_argument('--last', action='store_true', help='use the last epoch of a run instead of the best')
    parser.add_argument('--pretrained', action='store_true', help="use timm's pretrained weights of this name")
    add_model_flags(parser)
    parser.add_argument('--device', default='cuda', help='device; the CPU is used without CUDA')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='images in a batch')
    parser.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes')
    return parser


if __name__ == '__main__':
    main()
