"""The command lines of train.py and validate.py: timm's flags, and AgMax's own group.

A flag is declared once, in `flags/`: data.py, model.py, robustness.py, training.py, validation.py. Names, types and
defaults are those of timm's scripts; what belongs to the package alone is in the groups AgMax and robustness, in
--cutout, --lighting, --augment-backend, --image-memory, --fsdp, --check-data, --max-damaged, --early-stop*, --dry-run,
--log-tensorboard, --report and --hub-*.
"""
from ..command_line import Parser
from .flags import data, model, robustness, training, validation


def train_parser() -> Parser:
    """The command line of train.py."""
    parser = Parser(description='Train a timm model, with AgMax or without.')
    parser.add_argument('-c', '--config', action='append', default=[], metavar='FILE',
                        help='YAML file of options; may be repeated, later files win, flags win over all')
    training.agmax(parser.add_argument_group('AgMax'))
    data.dataset(parser, 'train')
    data.train_data(parser.add_argument_group('training and validation data'))
    _declare(parser, (
        ('model', model.model, model.scripting),
        ('model in training', model.train_model),
        ('input', data.input),
        ('device', model.device, model.train_device),
        ('augmentation', data.augmentation),
        ('mixing', data.mixing),
        ('scheduled resolutions', data.resolutions),
        ('images of native aspect and size (NaFlex)', data.naflex, data.train_naflex),
        ('task', training.task),
        ('loss', training.loss),
        ('distillation', model.distillation),
        ('optimizer', training.optimizer),
        ('schedule', training.schedule),
        ('batch norm', model.batch_norm),
        ('exponential moving average of the weights (EMA)', model.ema),
        ('run', training.run),
        ('TensorBoard, Weights & Biases', training.tracking),
        ('Hugging Face Hub', training.hub),
    ))
    return parser


def validate_parser() -> Parser:
    """The command line of validate.py."""
    parser = Parser(description='Evaluate a timm model, a checkpoint of train.py, or many of them.')
    data.dataset(parser, 'evaluate')
    data.validation_data(parser.add_argument_group('data'))
    group = parser.add_argument_group('model')
    model.validation_model(group)
    model.model(group)
    model.scripting(group).add_argument('--aot-autograd', action='store_true', help='ahead-of-time autograd')
    _declare(parser, (
        ('input', data.input, data.validation_input),
        ('images of native aspect and size (NaFlex)', data.naflex),
        ('device', model.device, validation.device),
        ('task', training.task),
        ('labels and metrics', validation.labels),
        ('robustness', robustness.corruptions, robustness.augmented, robustness.attacks, robustness.report),
        ('results', validation.results),
    ))
    return parser


def _declare(parser: Parser, groups) -> None:
    """Add a group for each title, with the flags that the functions behind it declare."""
    for title, *declare in groups:
        group = parser.add_argument_group(title)
        for flags in declare:
            flags(group)
