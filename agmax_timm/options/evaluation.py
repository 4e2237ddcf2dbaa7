"""What validate.py measures, and where it writes it."""

from .declare import above, at_least, between, group, option


@group
class Labels:
    """Labels and metrics."""
    real_labels: str = option('', "JSON of the ImageNet real labels, or 'imagenet' for timm's own",
        metavar='FILE', is_file=True)
    valid_labels: str = option(
        '',
        "text file, a line each, of the model's outputs that are classes of the data, or one of timm's: "
        "'imagenet-a', 'imagenet-r', 'mini-imagenet'",
        metavar='FILE', is_file=True)
    metrics_avg: str | None = option(None, 'precision, recall and F1 as well, averaged so',
        choices=('micro', 'macro', 'weighted'))


@group
class Robustness:
    """Robustness."""
    corruptions: list[str] | None = option(
        None,
        "corrupt the images by these, 'common' (15) or 'all' (19); needs the extra robust, but not with "
        '--corruptions-dir, of which they choose',
        metavar='NAME')
    corruptions_dir: str = option('', 'corrupted images of the same classes, as ImageNet-C: DIR/NAME/1 to 5/CLASS/',
        metavar='DIR', yields=True)
    severities: list[int] = option([1, 2, 3, 4, 5], 'severities of both', metavar='N', check=between(1, 5), yields=True)
    stress: list[str] = option([], 'strong colour jitter; random crops of 20 to 100 %% of the area',
        choices=('jitter', 'crop'), yields=True)
    agreement: bool = option(
        False,
        "how often two views of an image, by the training augmentation of the checkpoint or timm's default, get "
        'the same label')
    calibration: bool = option(False, 'expected calibration error (ECE), 15 bins')
    attack: str | None = option(None, 'change pixels so that the loss grows', choices=('fgsm', 'pgd'), yields=True)
    attack_norm: str = option('linf', 'what is bounded', choices=('linf', 'l2'), needs='attack')
    attack_eps: list[float] | None = option(
        None, 'bounds: linf in 1/255 (default: 1 2 4 8), l2 of pixels in [0, 1] (default: 0.25 0.5 1 2)',
        metavar='EPS', check=at_least(0), needs='attack')
    attack_steps: int = option(10, 'steps of pgd', metavar='N', check=at_least(1), needs='attack')
    attack_step_size: float | None = option(None, 'of pgd, in the unit of --attack-eps (default: 2.5 * EPS / N)',
        metavar='S', check=above(0), needs='attack')
    report_dir: str = option('', 'folder for robustness.csv, .md and, with matplotlib, .png of all that is evaluated',
        metavar='DIR', yields=True)


@group
class Results:
    """Results."""
    seed: int = option(42, 'random seed',
        metavar='S', check=between(0, 2 ** 32 - 1))
    log_freq: int = option(10, 'batches between log lines', metavar='N', check=at_least(1))
    results_file: str = option('', 'write the results to this file', metavar='FILE')
    results_format: str = option('csv', 'its format', choices=('csv', 'json'), needs='results_file')
    retry: bool = option(False, 'with a smaller batch where memory does not suffice')
