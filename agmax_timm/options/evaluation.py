"""What validate.py measures, and where it writes it."""

from .declare import POSITIVE, at_least, between, group, option


@group
class Labels:
    """Labels and metrics."""
    real_labels: str = option('', "JSON file of the ImageNet real labels, or 'imagenet' for those of timm",
        metavar='FILE', is_file=True)
    valid_labels: str = option(
        '',
        "text file with the model output of each class of the data, one per line; or a list of timm: 'imagenet-a', "
        "'imagenet-r', 'mini-imagenet'",
        metavar='FILE', is_file=True)
    metrics_avg: str | None = option(None, 'also measure precision, recall and F1, averaged in this way',
        choices=('micro', 'macro', 'weighted'))


@group
class Robustness:
    """Robustness."""
    corruptions: list[str] | None = option(
        None,
        "names of corruptions to evaluate, 'common' (15) or 'all' (19); needs the extra robust unless "
        '--corruptions-dir has the images',
        metavar='NAME')
    corruptions_dir: str = option(
        '', 'folder of corrupted images of the same classes, laid out as ImageNet-C: DIR/NAME/1 to 5/CLASS/',
        metavar='DIR', yields=True)
    severities: list[int] = option([1, 2, 3, 4, 5], 'severities of the corruptions',
        metavar='N', check=between(1, 5), yields=True)
    stress: list[str] = option(
        [], 'evaluate with strong colour jitter, or with random crops of 20 to 100 %% of the area',
        choices=('jitter', 'crop'), yields=True)
    agreement: bool = option(
        False,
        'measure how often two views of an image get the same label, by the training augmentation of the '
        "checkpoint or timm's default")
    calibration: bool = option(False, 'measure the expected calibration error (ECE) in 15 bins')
    attack: str | None = option(None, 'evaluate on images that are changed so that the loss grows',
        choices=('fgsm', 'pgd'), yields=True)
    attack_norm: str = option('linf', 'norm in which --attack-eps bounds the change',
        choices=('linf', 'l2'), needs='attack')
    attack_eps: list[float] | None = option(
        None, 'bounds of the change: linf in 1/255 (default: 1 2 4 8), l2 of pixels in [0, 1] (default: 0.25 0.5 1 2)',
        metavar='EPS', check=at_least(0), needs='attack')
    attack_steps: int = option(10, 'number of steps of pgd', metavar='N', check=at_least(1), needs='attack pgd')
    attack_step_size: float | None = option(
        None, 'length of a step of pgd, in the unit of --attack-eps (default: 2.5 * EPS / N)',
        metavar='S', check=POSITIVE, needs='attack pgd')
    report_dir: str = option('', 'folder for a report of all results: robustness.csv, .md and, with matplotlib, .png',
        metavar='DIR', yields=True)


@group
class Results:
    """Results."""
    seed: int = option(42, 'random seed', metavar='S', check=between(0, 2 ** 32 - 1))
    log_freq: int = option(10, 'number of batches between log lines', metavar='N', check=at_least(1))
    results_file: str = option('', 'file to write the results to', metavar='FILE')
    results_format: str = option('csv', 'format of --results-file', choices=('csv', 'json'), needs='results_file')
    result_json: bool = option(False, 'print the results as JSON, even on a terminal', yields=True)
    retry: bool = option(False, 'try again with a smaller batch if memory is too small')
