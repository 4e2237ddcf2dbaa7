"""The model: which one, from which weights, and its teacher."""
from typing import Any

from .declare import BELOW_1, POSITIVE, any_number, at_least, between, group, one_of, option


@group
class Model:
    """Model."""
    model: str = option('resnet50', 'name of the model in timm, hf_hub:OWNER/NAME or local-dir:DIR',
        metavar='NAME', resume='refused', evaluation='input', card=True, synonyms=('arch', 'architecture'))
    pretrained: bool = option(False, 'start from the pretrained weights of the model', resume='ignored', card=True)
    num_classes: int | None = option(
        None, "number of classes (default: the model's; in training with --agmax or --agmax-teacher, that of the data)",
        metavar='N', check=at_least(1), resume='refused', evaluation='input', synonyms=('nb_classes',))
    gp: str | None = option(None, "global pooling: fast, avg, max, avgmax or avgmaxc (default: the model's)",
        metavar='POOL', resume='refused', evaluation='input')
    in_chans: int | None = option(None, 'number of input channels (default: 3)',
        metavar='N', check=at_least(1), resume='refused', evaluation='input')
    model_kwargs: dict[str, Any] = option({}, 'further arguments of the model',
        metavar='KEY=VALUE', resume='refused', evaluation='input')
    fast_norm: bool = option(False, "use timm's fast normalization layers", evaluation='precision')
    fuser: str = option('', 'fuser of TorchScript: te, old or nvfuser',
        metavar='NAME', check=one_of('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'),
        evaluation='compilation')
    torchcompile_mode: str | None = option(None, 'mode of torch.compile (default: that of torch)',
        metavar='MODE', needs='torchcompile', evaluation='compilation')
    torchscript: bool = option(False, 'compile the model with torch.jit.script',
        exclusive='compiler', evaluation='compilation')
    torchcompile: str | None = option(None, 'compile the model with torch.compile (backend without a value: %(const)s)',
        metavar='BACKEND', nargs='?', const='inductor', exclusive='compiler', evaluation='compilation',
        synonyms=('compile',))


@group
class TrainModel(Model):
    """Model."""
    pretrained_path: str | None = option(None, 'file to read instead of the published pretrained weights',
        metavar='FILE', needs='pretrained', resume='ignored', recipe='file name')
    pretrained_cfg_overlay: dict[str, Any] = option({}, 'changes of the configuration of the pretrained weights',
        metavar='KEY=VALUE')
    initial_checkpoint: str = option('', 'file of weights to start from; they must fit all layers of the model',
        metavar='FILE', resume='ignored', recipe='file name', synonyms=('ckpt', 'finetune', 'weights'))
    resume: str = option('', "checkpoint to resume from; 'auto': the newest one of --experiment, if any",
        metavar='FILE', affects_result=False, recipe='left out')
    no_resume_opt: bool = option(False, 'resume without the state of the optimizer',
        needs='resume', resume='ignored', recipe='left out')
    drop: float = option(0.0, 'dropout rate',
        metavar='RATE', check=BELOW_1, card=True, synonyms=('dropout',))
    drop_connect: float | None = option(None, 'no effect, as in timm: use --drop-path',
        metavar='RATE', check=BELOW_1)
    drop_path: float | None = option(None, "rate of stochastic depth (default: the model's)",
        metavar='RATE', check=BELOW_1, card=True)
    drop_block: float | None = option(
        None, "rate of drop block (default: the model's)",
        metavar='RATE', check=BELOW_1)
    bn_momentum: float | None = option(None, "momentum of batch norm (default: the model's)",
        metavar='M', check=between(0, 1))
    bn_eps: float | None = option(None, "epsilon of batch norm (default: the model's)", metavar='EPS', check=POSITIVE)
    init_std: float | None = option(
        None, "standard deviation of new initial Linear and Conv weights; 0.2 in the paper (default: the model's own)",
        alias='--agmax-init-std', metavar='STD', check=POSITIVE, yields=True, resume='ignored', card=True)
    head_init_scale: float | None = option(None, 'factor of the initial weights and bias of the head (default: 1)',
        metavar='S', check=any_number('a factor of weights, 0 and negative ones are initialisations as well'),
        resume='ignored')
    head_init_bias: float | None = option(None, "initial bias of the head (default: the model's)",
        metavar='B', check=any_number('a logit'), resume='ignored')
    freeze: list[str] = option(
        [], "names of parts of the model that are not trained, such as conv1 'layer[12]'; their batch norm keeps its "
        'statistics', metavar='PATTERN', exclusive='frozen', resume='refused with optimizer', card=True)
    linear_probe: bool = option(False, 'train the head of the model alone',
        exclusive='frozen', resume='refused with optimizer', card=True)
    grad_checkpointing: bool = option(
        False, 'recompute activations in the backward pass, which saves memory and costs time')


@group
class ValidationModel(Model):
    """Model."""
    model: str = option(
        'dpn92',
        "name of the model, a pattern of names, 'all' or a file of names (default with --checkpoint: the "
        "checkpoint's)",
        short='-m', metavar='NAME', resume='refused', evaluation='input', card=True, synonyms=('arch', 'architecture'))
    pretrained: bool = option(False, 'use the pretrained weights of the model; implied without --checkpoint',
        resume='ignored', card=True)
    checkpoint: str = option(
        '',
        'file of weights, folder of such files or of runs, or a quoted pattern; model and input options that are '
        'not given are those of the '
        'run that wrote it',
        metavar='FILE', synonyms=('ckpt', 'weights'))
    use_ema: bool = option(False, 'evaluate the EMA of the weights in the checkpoint, if any',
        needs='checkpoint', synonyms=('ema',))
    reparam: bool = option(False, 'fuse the branches of re-parameterizable layers')
    test_pool: bool = option(False, "pool over inputs larger than the model's own input size")
    aot_autograd: bool = option(False, "compile the model with functorch's ahead-of-time autograd",
        exclusive='compiler')


@group
class BatchNorm:
    """Batch norm."""
    sync_bn: bool = option(False, 'compute the statistics of batch norm over all processes')
    dist_bn: str = option(
        'reduce', "how processes share running statistics after each epoch: reduce, broadcast or '' for not at all",
        check=one_of('', 'broadcast', 'reduce'), unless='sync_bn')
    split_bn: bool = option(False, 'compute the statistics of batch norm separately for each of --aug-splits',
        resume='refused')


@group
class Ema:
    """Exponential moving average of the weights (EMA)."""
    model_ema: bool = option(False, 'keep an EMA of the weights, evaluate it too and rank the checkpoints by it',
        card=True, synonyms=('ema',))
    model_ema_force_cpu: bool = option(False, 'keep the EMA on the CPU and do not evaluate it', needs='model_ema')
    model_ema_decay: float = option(0.9998, 'decay of the EMA in each update',
        metavar='D', check=BELOW_1, needs='model_ema', card=True, synonyms=('ema_decay',))
    model_ema_warmup: bool = option(False, 'let the decay of the EMA grow with the updates', needs='model_ema')


@group
class Distillation:
    """Distillation."""
    kd_model_name: str | None = option(None, 'name of the teacher in timm; it gets its pretrained weights',
        metavar='NAME', resume='refused')
    kd_distill_type: str = option(
        'logit', 'distil by logits, by pooled features, or by the distillation head of the student (token)',
        choices=('logit', 'feature', 'token'), needs='kd_model_name', resume='refused')
    kd_loss_type: str = option('kl', 'distance between the logits of student and teacher',
        metavar='NAME', check=one_of('kl'), needs='kd_model_name')
    distill_loss_weight: float | None = option(
        None, 'weight of the distillation loss (default: 1, or 1 - --task-loss-weight if that is given)',
        metavar='W', check=at_least(0), needs='kd_model_name')
    task_loss_weight: float | None = option(None, 'weight of the classification loss beside distillation (default: 1)',
        metavar='W', check=at_least(0), needs='kd_model_name')
    kd_temperature: float = option(4.0, 'temperature of the softmax of student and teacher',
        metavar='T', check=POSITIVE, needs='kd_model_name')
    kd_student_feature_dim: int | None = option(None, "number of features of the student (default: the model's)",
        metavar='N', check=at_least(1), needs='kd_distill_type feature')
    kd_teacher_feature_dim: int | None = option(None, "number of features of the teacher (default: the model's)",
        metavar='N', check=at_least(1), needs='kd_distill_type feature')
    kd_token_distill_type: str = option(
        'soft', "distil the teacher's distribution (soft) or its most probable class (hard)",
        choices=('soft', 'hard'), needs='kd_distill_type token')
