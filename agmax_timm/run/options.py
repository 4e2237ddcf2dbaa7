"""Every flag of train.py and validate.py, declared once: timm's names, types and defaults, and AgMax's own group."""
import argparse

from timm.utils import ParseKwargs

from ..loss import AGREEMENT_KINDS


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Name the defaults that say something."""

    def _get_help_string(self, action: argparse.Action):
        return super()._get_help_string(action) if action.default else action.help


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of all flags before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {message} (--help lists all flags)\n')


def train_parser() -> Parser:
    """The command line of train.py."""
    parser = Parser(description='Train a timm model, with AgMax or without.')
    parser.add_argument('-c', '--config', action='append', default=[], metavar='FILE',
                        help='YAML file of options; may be repeated, later files win, flags win over all')
    _agmax(parser.add_argument_group('AgMax'))
    _dataset(parser, 'train')
    _train_data(parser.add_argument_group('training and validation data'))
    _model(parser.add_argument_group('model'))
    _train_model(parser.add_argument_group('model in training'))
    _input(parser.add_argument_group('input'))
    _device(parser.add_argument_group('device'))
    _augmentation(parser.add_argument_group('augmentation'))
    _mixing(parser.add_argument_group('mixing'))
    _loss(parser.add_argument_group('loss'))
    _optimizer(parser.add_argument_group('optimizer'))
    _schedule(parser.add_argument_group('schedule'))
    _batch_norm(parser.add_argument_group('batch norm'))
    _ema(parser.add_argument_group('exponential moving average of the weights (EMA)'))
    _run(parser.add_argument_group('run'))
    _hub(parser.add_argument_group('Hugging Face Hub'))
    return parser


def validate_parser() -> Parser:
    """The command line of validate.py."""
    parser = Parser(description='Evaluate a timm model or a checkpoint of train.py.')
    _dataset(parser, 'evaluate')
    group = parser.add_argument_group('data')
    group.add_argument('--split', default='validation', metavar='NAME', help='split')
    group.add_argument('--num-samples', type=int, metavar='N', help='images in the split, for iterable data sets')
    group.add_argument('-b', '--batch-size', type=int, default=256, metavar='N', help='batch size')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes')
    group.add_argument('--pin-mem', action='store_true', help='pin host memory')
    group.add_argument('--no-prefetcher', action='store_true', help='normalise in the workers, not on the device')
    group = parser.add_argument_group('model')
    group.add_argument('-m', '--model', default='dpn92', metavar='NAME',
                       help="name; with --checkpoint, the checkpoint's if not given")
    group.add_argument('--pretrained', action='store_true', help='pretrained weights; implied without --checkpoint')
    group.add_argument('--checkpoint', default='', metavar='FILE',
                       help="weights; what is not given here of model and input is taken from the run that wrote it")
    group.add_argument('--use-ema', action='store_true', help="the checkpoint's EMA weights, where it has them")
    _model(group)
    group = parser.add_argument_group('input')
    _input(group)
    group.add_argument('--use-train-size', action='store_true', help="the model's training size, not its test size")
    group.add_argument('--crop-mode', metavar='NAME', help='squash, border or center')
    group.add_argument('--crop-border-pixels', type=int, metavar='N', help='pixels to trim off the border first')
    group = parser.add_argument_group('device')
    _device(group)
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group = parser.add_argument_group('results')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    group.add_argument('--results-file', default='', metavar='FILE', help='write the results to this file')
    group.add_argument('--results-format', default='csv', choices=('csv', 'json'), help='its format')
    return parser


def _agmax(group):
    group.add_argument('--agmax', action='store_true', help='two views of every image, and a reward if they agree')
    group.add_argument('--agmax-loss', default='mi', choices=AGREEMENT_KINDS,
                       help='agreement: mutual information as published, or an alternative')
    group.add_argument('--agmax-weight', type=float, default=1.0, metavar='W',
                       help='weight of the agreement')
    group.add_argument('--agmax-divergence-weight', type=float, default=4.0, metavar='W',
                       help='weight of the distance from the joint prediction')
    group.add_argument('--agmax-units', type=int, metavar='N',
                       help='hidden units of the Q-network (default: by the number of classes)')
    group.add_argument('--agmax-init-std', type=float, metavar='STD',
                       help="N(0, STD) for all Linear and Conv weights, 0.2 as published (default: the model's own)")


def _dataset(parser, verb):
    parser.add_argument('data', nargs='?', metavar='DIR', help=f'folder or tar file of the data to {verb} on')
    group = parser.add_argument_group('data set')
    group.add_argument('--data-dir', metavar='DIR', help='the same; wins over DIR')
    group.add_argument('--dataset', default='', metavar='NAME',
                       help="'demo' (built in), or TYPE/NAME as in timm (torch/, hfds/, hfids/, tfds/, wds/); "
                            'if empty, DIR is a folder or tar file of classes')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ data sets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help='let hfds/ run code of the data set')
    group.add_argument('--class-map', default='', metavar='FILE', help='file of class names in order')
    group.add_argument('--input-img-mode', metavar='MODE', help='PIL mode (default: RGB, or L for 1 channel)')
    group.add_argument('--input-key', metavar='KEY', help='key of the image in the data set')
    group.add_argument('--target-key', metavar='KEY', help='key of the label in the data set')


def _train_data(group):
    group.add_argument('--train-split', default='train', metavar='NAME', help='split to train on')
    group.add_argument('--val-split', default='validation', metavar='NAME',
                       help="split to validate on, '' for none")
    group.add_argument('--train-num-samples', type=int, metavar='N', help='training images, for iterable data sets')
    group.add_argument('--val-num-samples', type=int, metavar='N', help='validation images, for iterable data sets')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N',
                       help='images a process in a batch; with --agmax, twice as many views')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='(default: --batch-size)')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes')
    group.add_argument('--pin-mem', action='store_true', help='pin host memory')
    group.add_argument('--no-prefetcher', action='store_true', help='normalise and mix outside of the prefetcher')
    group.add_argument('--use-multi-epochs-loader', action='store_true', help='keep the loader going between epochs')
    group.add_argument('--epoch-repeats', type=float, default=0., metavar='N', help='passes an epoch, if iterable')


def _model(group):
    group.add_argument('--num-classes', type=int, metavar='N', help="outputs (default: the model's)")
    group.add_argument('--gp', metavar='POOL', help='global pool: fast, avg, max, avgmax, avgmaxc')
    group.add_argument('--in-chans', type=int, metavar='N', help='input channels (default: 3)')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                       help="further arguments of the model")
    group.add_argument('--fast-norm', action='store_true', help="timm's fast normalisation layers")
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
                       help='torch.compile (backend: %(const)s)')
    group.add_argument('--torchcompile-mode', metavar='MODE', help='mode of torch.compile')


def _train_model(group):
    group.add_argument('--model', default='resnet50', metavar='NAME',
                       help='name in timm, hf_hub:OWNER/NAME or local-dir:DIR')
    group.add_argument('--pretrained', action='store_true', help='start from the pretrained weights')
    group.add_argument('--pretrained-path', metavar='FILE', help='this file in place of the pretrained weights')
    group.add_argument('--initial-checkpoint', default='', metavar='FILE', help='start from these weights')
    group.add_argument('--resume', default='', metavar='FILE', help='go on from this checkpoint')
    group.add_argument('--no-resume-opt', action='store_true', help='without its optimizer state')
    group.add_argument('--drop', type=float, default=0.0, metavar='RATE', help='dropout')
    group.add_argument('--drop-path', type=float, metavar='RATE', help='stochastic depth')
    group.add_argument('--drop-block', type=float, metavar='RATE', help='drop block')
    group.add_argument('--bn-momentum', type=float, metavar='M', help="batch norm's momentum")
    group.add_argument('--bn-eps', type=float, metavar='EPS', help="batch norm's epsilon")
    group.add_argument('--head-init-scale', type=float, metavar='S', help='scale of the initial head')
    group.add_argument('--head-init-bias', type=float, metavar='B', help='initial bias of the head')
    group.add_argument('--grad-checkpointing', action='store_true', help='trade compute for activation memory')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')


def _input(group):
    group.add_argument('--img-size', type=int, metavar='N', help="side of the input (default: the model's)")
    group.add_argument('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width of the input')
    group.add_argument('--crop-pct', type=float, metavar='PCT', help='centre crop in evaluation')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='mean of the pixels in [0, 1]')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='standard deviation of the pixels')
    group.add_argument('--interpolation', default='', metavar='NAME', help='resize in evaluation')


def _device(group):
    group.add_argument('--device', default='cuda', help='cpu where there is no CUDA')
    group.add_argument('--amp', action='store_true', help='automatic mixed precision')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='lower precision')
    group.add_argument('--model-dtype', choices=('float32', 'float16', 'bfloat16'), help='of the weights')


def _augmentation(group):
    group.add_argument('--no-aug', action='store_true', help='no augmentation at all')
    group.add_argument('--train-crop-mode', metavar='MODE',
                       help="rrc, rkrc, rkrr as in timm; pad: pad an eighth, crop at random (default: rrc)")
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', help='area of the crop')
    group.add_argument('--ratio', type=float, nargs='+', default=[3. / 4., 4. / 3.], metavar='R', help='its aspect')
    group.add_argument('--train-interpolation', default='random', metavar='NAME', help='resize in training')
    group.add_argument('--hflip', type=float, default=0.5, metavar='P', help='horizontal flip')
    group.add_argument('--vflip', type=float, default=0., metavar='P', help='vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='F', help='brightness, contrast, saturation')
    group.add_argument('--color-jitter-prob', type=float, metavar='P', help='share of jittered images (default: all)')
    group.add_argument('--grayscale-prob', type=float, metavar='P', help='share of gray images')
    group.add_argument('--gaussian-blur-prob', type=float, metavar='P', help='share of blurred images')
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment, RandAugment, AugMix or 3-augment, as in timm')
    group.add_argument('--aug-repeats', type=float, default=0, metavar='N', help='repeated augmentation over ranks')
    group.add_argument('--lighting', type=float, default=0., metavar='STD', help='PCA lighting, 0.1 as published')
    group.add_argument('--cutout', type=int, default=0, metavar='SIDE', help='one square of the mean colour, in pixels')
    group.add_argument('--reprob', type=float, default=0., metavar='P', help='random erasing')
    group.add_argument('--remode', default='pixel', help='const, rand or pixel')
    group.add_argument('--recount', type=int, default=1, metavar='N', help='regions to erase')
    group.add_argument('--resplit', action='store_true', help='erase in the second half of the batch alone')


def _mixing(group):
    group.add_argument('--mixup', type=float, default=0.0, metavar='ALPHA', help='MixUp')
    group.add_argument('--cutmix', type=float, default=0.0, metavar='ALPHA', help='CutMix')
    group.add_argument('--cutmix-minmax', type=float, nargs='+', metavar='PCT', help='CutMix by smallest, largest side')
    group.add_argument('--mixup-prob', type=float, default=1.0, metavar='P', help='share of batches or images mixed')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='share of CutMix of both')
    group.add_argument('--mixup-mode', default='batch', help='batch, pair or elem')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixing from this epoch on')


def _loss(group):
    group.add_argument('--smoothing', type=float, default=0.1, metavar='S', help='label smoothing')
    group.add_argument('--bce-loss', action='store_true', help='binary cross-entropy')
    group.add_argument('--bce-sum', action='store_true', help='summed over classes')
    group.add_argument('--bce-target-thresh', type=float, metavar='T', help='targets above this become 1')
    group.add_argument('--bce-pos-weight', type=float, metavar='W', help='weight of positive targets')


def _optimizer(group):
    group.add_argument('--opt', default='sgd', metavar='NAME', help='any of timm')
    group.add_argument('--opt-eps', type=float, metavar='EPS', help="epsilon (default: the optimizer's)")
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='BETA', help="betas (default: the optimizer's)")
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                       help='further arguments of create_optimizer_v2, filter_bias_and_bn=False among them')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M', help='momentum')
    group.add_argument('--weight-decay', type=float, default=2e-5, metavar='W', help='not of norms, biases')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='gradient clipping')
    group.add_argument('--clip-mode', default='norm', help='norm, value or agc')
    group.add_argument('--layer-decay', type=float, metavar='D', help='learning rate decay a layer')
    group.add_argument('--layer-decay-min-scale', type=float, default=0, metavar='S', help='its smallest scale')
    group.add_argument('--layer-decay-no-opt-scale', type=float, metavar='S', help='below this scale, do not train')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches an update (default: 1)')


def _schedule(group):
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='passes over the data')
    group.add_argument('--sched', default='cosine', metavar='NAME', help='any of timm')
    group.add_argument('--sched-on-updates', action='store_true', help='step with every update')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate; wins over --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='for --lr-base-size images an update')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='N', help='images an update')
    group.add_argument('--lr-base-scale', default='', metavar='SCALE', help='linear or sqrt (default: by optimizer)')
    group.add_argument('--lr-noise', type=float, nargs='+', metavar='PCT', help='epochs with noise, from and to')
    group.add_argument('--lr-noise-pct', type=float, default=0.67, metavar='PCT', help='its limit')
    group.add_argument('--lr-noise-std', type=float, default=1.0, metavar='STD', help='its standard deviation')
    group.add_argument('--lr-cycle-mul', type=float, default=1.0, metavar='M', help='length to the cycle before')
    group.add_argument('--lr-cycle-decay', type=float, default=0.5, metavar='D', help='height to the cycle before')
    group.add_argument('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles')
    group.add_argument('--lr-k-decay', type=float, default=1.0, metavar='K', help='k-decay of cosine and poly')
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='learning rate at the start')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='epochs to the full learning rate')
    group.add_argument('--warmup-prefix', action='store_true', help='warm up before the schedule, not within')
    group.add_argument('--min-lr', type=float, default=0, metavar='LR', help='learning rate at the end')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at it after the schedule')
    group.add_argument('--patience-epochs', type=int, default=10, metavar='N', help='for plateau')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='EPOCH',
                       help='for multistep')
    group.add_argument('--decay-epochs', type=float, default=90, metavar='N', help='for step')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='factor of a step')
    group.add_argument('--start-epoch', type=int, metavar='N', help='(default: 0, or where the checkpoint ended)')


def _batch_norm(group):
    group.add_argument('--sync-bn', action='store_true', help='statistics over all ranks')
    group.add_argument('--dist-bn', default='reduce', help="running statistics an epoch: reduce, broadcast or ''")
    group.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers in DDP')


def _ema(group):
    group.add_argument('--model-ema', action='store_true', help='keep one, and select the best checkpoint by it')
    group.add_argument('--model-ema-force-cpu', action='store_true', help='on the CPU, without validation')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, metavar='D', help='of an update')
    group.add_argument('--model-ema-warmup', action='store_true', help='let the decay grow')


def _run(group):
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--worker-seeding', default='all', help='all or part')
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between validations')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery files')
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    group.add_argument('--output', default='', metavar='DIR', help='(default: output/train)')
    group.add_argument('--experiment', default='', metavar='NAME', help="name of the run's folder")
    group.add_argument('--eval-metric', default='top1', metavar='NAME', help='selects the best checkpoint')
    group.add_argument('--save-images', action='store_true', help='at log intervals, a grid of views and their labels')
    group.add_argument('--synchronize-step', action='store_true', help='synchronise the device after each update')


def _hub(group):
    group.add_argument('--push-to-hub', default='', metavar='OWNER/NAME',
                       help='publish the best weights at the end of the run; token and name are checked before it')
    group.add_argument('--hub-private', action='store_true', help='in a private repository')
    group.add_argument('--hub-revision', default='', metavar='R', help='on this branch (default: main)')
    group.add_argument('--hub-pr', action='store_true', help='as a pull request')
