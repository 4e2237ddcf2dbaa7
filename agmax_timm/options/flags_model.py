"""Flags of the model: which one, from which weights, on which device, in which precision, and its teacher."""
from ..base.command_line import KeyValues


def model(group):
    group.add_argument('--num-classes', type=int, metavar='N', help="outputs (default: the model's)")
    group.add_argument('--gp', metavar='POOL', help='global pool: fast, avg, max, avgmax, avgmaxc')
    group.add_argument('--in-chans', type=int, metavar='N', help='input channels (default: 3)')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                       help="further arguments of the model")
    group.add_argument('--fast-norm', action='store_true', help="timm's fast normalisation layers")
    group.add_argument('--fuser', default='', metavar='NAME', help="TorchScript's fuser: te, old or nvfuser")


def scripting(group):
    """Flags that exclude each other; returns their group."""
    group.add_argument('--torchcompile-mode', metavar='MODE', help='mode of torch.compile')
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument('--torchscript', action='store_true', help='torch.jit.script the model')
    exclusive.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
                           help='torch.compile (backend: %(const)s)')
    return exclusive


def train_model(group):
    group.add_argument('--model', default='resnet50', metavar='NAME',
                       help='name in timm, hf_hub:OWNER/NAME or local-dir:DIR')
    group.add_argument('--pretrained', action='store_true', help='start from the pretrained weights')
    group.add_argument('--pretrained-path', metavar='FILE', help='this file in place of the pretrained weights')
    group.add_argument('--pretrained-cfg-overlay', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                       help="changes to the pretrained weights' configuration")
    group.add_argument('--initial-checkpoint', default='', metavar='FILE', help='start from these weights')
    group.add_argument('--resume', default='', metavar='FILE',
                       help="go on from this checkpoint; 'auto': from the last one of --experiment, if there is one")
    group.add_argument('--no-resume-opt', action='store_true', help='without its optimizer state')
    group.add_argument('--drop', type=float, default=0.0, metavar='RATE', help='dropout')
    group.add_argument('--drop-connect', type=float, metavar='RATE', help='none, as in timm: use --drop-path')
    group.add_argument('--drop-path', type=float, metavar='RATE', help='stochastic depth')
    group.add_argument('--drop-block', type=float, metavar='RATE', help='drop block')
    group.add_argument('--bn-momentum', type=float, metavar='M', help="batch norm's momentum")
    group.add_argument('--bn-eps', type=float, metavar='EPS', help="batch norm's epsilon")
    group.add_argument('--head-init-scale', type=float, metavar='S', help='scale of the initial head')
    group.add_argument('--head-init-bias', type=float, metavar='B', help='initial bias of the head')
    group.add_argument('--grad-checkpointing', action='store_true', help='trade compute for activation memory')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')


def validation_model(group):
    group.add_argument('-m', '--model', default='dpn92', metavar='NAME',
                       help="name, pattern, 'all', or file of names; with --checkpoint, the checkpoint's if not given")
    group.add_argument('--pretrained', action='store_true', help='pretrained weights; implied without --checkpoint')
    group.add_argument('--checkpoint', default='', metavar='FILE',
                       help='weights, or a folder of such; what is not given here of model and input is taken from the '
                            'run that wrote it')
    group.add_argument('--use-ema', action='store_true', help="the checkpoint's EMA weights, where it has them")
    group.add_argument('--reparam', action='store_true', help='fuse the branches of re-parameterisable layers')
    group.add_argument('--test-pool', action='store_true', help="pool over inputs larger than the model's own")


def device(group):
    group.add_argument('--device', default='cuda', help='cpu where there is no CUDA')
    group.add_argument('--amp', action='store_true', help='automatic mixed precision')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='lower precision')
    group.add_argument('--model-dtype', choices=('float32', 'float16', 'bfloat16'), help='of the weights')


def train_device(group):
    group.add_argument('--device-modules', nargs='+', metavar='MODULE', help='Python modules of device backends')
    group.add_argument('--synchronize-step', action='store_true', help='synchronise the device after each update')
    group.add_argument('--local_rank', type=int, default=0, metavar='N', help='set by old launchers')
    group.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers in DDP')
    group.add_argument('--fsdp', action='store_true',
                       help='shard weights, gradients and optimizer state over the ranks (FSDP2)')


def batch_norm(group):
    group.add_argument('--sync-bn', action='store_true', help='statistics over all ranks')
    group.add_argument('--dist-bn', default='reduce', help="running statistics an epoch: reduce, broadcast or ''")
    group.add_argument('--split-bn', action='store_true', help='statistics of each of the --aug-splits apart')


def ema(group):
    group.add_argument('--model-ema', action='store_true', help='keep one, and select the best checkpoint by it')
    group.add_argument('--model-ema-force-cpu', action='store_true', help='on the CPU, without validation')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, metavar='D', help='of an update')
    group.add_argument('--model-ema-warmup', action='store_true', help='let the decay grow')


def distillation(group):
    group.add_argument('--kd-model-name', metavar='NAME', help='teacher, with its pretrained weights')
    group.add_argument('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'),
                       help='by logits, by pooled features, or by the distillation head of the student')
    group.add_argument('--kd-loss-type', default='kl', metavar='NAME', help='distance of logits')
    group.add_argument('--distill-loss-weight', type=float, metavar='W',
                       help='weight of the distillation (default: 1, or 1 - --task-loss-weight where that is given)')
    group.add_argument('--task-loss-weight', type=float, metavar='W',
                       help='weight of the classification loss (default: 1)')
    group.add_argument('--kd-temperature', type=float, default=4.0, metavar='T', help='of both softmaxes')
    group.add_argument('--kd-student-feature-dim', type=int, metavar='N', help="(default: the student's)")
    group.add_argument('--kd-teacher-feature-dim', type=int, metavar='N', help="(default: the teacher's)")
    group.add_argument('--kd-token-distill-type', default='soft', choices=('soft', 'hard'),
                       help="the teacher's distribution, or its first choice")
