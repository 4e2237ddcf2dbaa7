"""The command lines of train.py and validate.py: timm's flags, and AgMax's own group.

A flag is declared once, in `flags/`: data.py, model.py, robustness.py, training.py, validation.py. Names, types and
defaults are those of timm's scripts; what belongs to the package alone is in the groups AgMax and robustness, in
--cutout, --lighting, --augment-backend, --image-memory, --fsdp, --check-data, --max-damaged, --early-stop*, --dry-run,
--log-tensorboard, --report and --hub-*.
"""
from ..base.command_line import Parser
from . import flags_data, flags_model, flags_robustness, flags_training, flags_validation


def train_parser() -> Parser:
    """The command line of train.py."""
    parser = Parser(description='Train a timm model, with AgMax or without.')
    parser.add_argument('-c', '--config', action='append', default=[], metavar='FILE',
                        help='YAML file of options; may be repeated, later files win, flags win over all')
    flags_training.agmax(parser.add_argument_group('AgMax'))
    flags_data.dataset(parser, 'train')
    flags_data.train_data(parser.add_argument_group('training and validation data'))
    _declare(parser, (
        ('model', flags_model.model, flags_model.scripting),
        ('model in training', flags_model.train_model),
        ('input', flags_data.input),
        ('device', flags_model.device, flags_model.train_device),
        ('augmentation', flags_data.augmentation),
        ('mixing', flags_data.mixing),
        ('scheduled resolutions', flags_data.resolutions),
        ('images of native aspect and size (NaFlex)', flags_data.naflex, flags_data.train_naflex),
        ('task', flags_training.task),
        ('loss', flags_training.loss),
        ('distillation', flags_model.distillation),
        ('optimizer', flags_training.optimizer),
        ('schedule', flags_training.schedule),
        ('batch norm', flags_model.batch_norm),
        ('exponential moving average of the weights (EMA)', flags_model.ema),
        ('run', flags_training.run),
        ('TensorBoard, Weights & Biases', flags_training.tracking),
        ('Hugging Face Hub', flags_training.hub),
    ))
    return parser


def validate_parser() -> Parser:
    """The command line of validate.py."""
    parser = Parser(description='Evaluate a timm model, a checkpoint of train.py, or many of them.')
    flags_data.dataset(parser, 'evaluate')
    flags_data.validation_data(parser.add_argument_group('data'))
    group = parser.add_argument_group('model')
    flags_model.validation_model(group)
    flags_model.model(group)
    flags_model.scripting(group).add_argument('--aot-autograd', action='store_true', help='ahead-of-time autograd')
    _declare(parser, (
        ('input', flags_data.input, flags_data.validation_input),
        ('images of native aspect and size (NaFlex)', flags_data.naflex),
        ('device', flags_model.device, flags_validation.device),
        ('task', flags_training.task),
        ('labels and metrics', flags_validation.labels),
        ('robustness', flags_robustness.corruptions, flags_robustness.augmented, flags_robustness.attacks,
         flags_robustness.report),
        ('results', flags_validation.results),
    ))
    return parser


def _declare(parser: Parser, groups) -> None:
    """Add a group for each title, with the flags that the functions behind it declare."""
    for title, *declare in groups:
        group = parser.add_argument_group(title)
        for flags in declare:
            flags(group)
