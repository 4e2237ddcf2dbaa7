"""The model: which one, from which weights, and its teacher."""
from typing import Any

from .declare import above, any_number, at_least, between, from_to_below, group, one_of, option


@group
class Model:
    """Model."""
    model: str = option('resnet50', 'name in timm, hf_hub:OWNER/NAME or local-dir:DIR',
        metavar='NAME', resume='refused', evaluation='input', card=True, synonyms=('arch', 'architecture'))
    pretrained: bool = option(False, 'start from the pretrained weights', resume='ignored', card=True)
    num_classes: int | None = option(None, "outputs (default: the model's)",
        metavar='N', check=at_least(1), resume='refused', evaluation='input', synonyms=('nb_classes',))
    gp: str | None = option(None, 'global pool: fast, avg, max, avgmax, avgmaxc',
        metavar='POOL', resume='refused', evaluation='input')
    in_chans: int | None = option(None, 'input channels (default: 3)',
        metavar='N', check=at_least(1), resume='refused', evaluation='input')
    model_kwargs: dict[str, Any] = option({}, 'further arguments of the model',
        metavar='KEY=VALUE', resume='refused', evaluation='input')
    fast_norm: bool = option(False, "timm's fast normalisation layers", evaluation='precision')
    fuser: str = option('', "TorchScript's fuser: te, old or nvfuser",
        metavar='NAME', check=one_of('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'), needs='torchscript',
        evaluation='compilation')
    torchcompile_mode: str | None = option(None, 'mode of torch.compile',
        metavar='MODE', needs='torchcompile', evaluation='compilation')
    torchscript: bool = option(False, 'torch.jit.script the model', exclusive='compiler', evaluation='compilation')
    torchcompile: str | None = option(None, 'torch.compile (backend: %(const)s)',
        metavar='BACKEND', nargs='?', const='inductor', exclusive='compiler', evaluation='compilation',
        synonyms=('compile',))


@group
class TrainModel(Model):
    """Model."""
    pretrained_path: str | None = option(None, 'this file in place of the pretrained weights',
        metavar='FILE', needs='pretrained', resume='ignored', recipe='file name', is_file=True)
    pretrained_cfg_overlay: dict[str, Any] = option({}, "changes to the pretrained weights' configuration",
        metavar='KEY=VALUE')
    initial_checkpoint: str = option('', 'start from these weights',
        metavar='FILE', resume='ignored', recipe='file name', is_file=True, synonyms=('ckpt', 'finetune', 'weights'))
    resume: str = option('', "resume from this checkpoint; auto: from the last one of --experiment, if it exists",
        metavar='FILE', affects_result=False, recipe='left out')
    no_resume_opt: bool = option(False, 'without its optimizer state',
        needs='resume', resume='ignored', recipe='left out')
    drop: float = option(0.0, 'dropout', metavar='RATE', check=from_to_below(0, 1), card=True, synonyms=('dropout',))
    drop_connect: float | None = option(None, 'none, as in timm: use --drop-path',
        metavar='RATE', check=from_to_below(0, 1))
    drop_path: float | None = option(None, 'stochastic depth', metavar='RATE', check=from_to_below(0, 1), card=True)
    drop_block: float | None = option(None, 'drop block', metavar='RATE', check=from_to_below(0, 1))
    bn_momentum: float | None = option(None, "batch norm's momentum", metavar='M', check=between(0, 1))
    bn_eps: float | None = option(None, "batch norm's epsilon", metavar='EPS', check=above(0))
    head_init_scale: float | None = option(None, 'scale of the initial head',
        metavar='S', check=any_number('a factor of weights, 0 and negative ones are initialisations as well'),
        resume='ignored')
    head_init_bias: float | None = option(None, 'initial bias of the head',
        metavar='B', check=any_number('a logit'), resume='ignored')
    grad_checkpointing: bool = option(False, 'trade compute for activation memory')


@group
class ValidationModel(Model):
    """Model."""
    model: str = option(
        'dpn92', "name, pattern, 'all', or file of names; with --checkpoint, the checkpoint's if not given",
        short='-m', metavar='NAME', resume='refused', evaluation='input', card=True, synonyms=('arch', 'architecture'))
    pretrained: bool = option(False, 'pretrained weights; implied without --checkpoint', resume='ignored', card=True)
    checkpoint: str = option(
        '',
        'weights, or a folder of such; what is not given here of model and input is taken from the run that wrote '
        'it',
        metavar='FILE', synonyms=('ckpt', 'weights'))
    use_ema: bool = option(False, "the checkpoint's EMA weights, where it has them",
        needs='checkpoint', synonyms=('ema',))
    reparam: bool = option(False, 'fuse the branches of re-parameterisable layers')
    test_pool: bool = option(False, "pool over inputs larger than the model's own")
    aot_autograd: bool = option(False, 'ahead-of-time autograd', exclusive='compiler')


@group
class BatchNorm:
    """Batch norm."""
    sync_bn: bool = option(False, 'statistics over all ranks')
    dist_bn: str = option('reduce', "running statistics an epoch: reduce, broadcast or ''",
        check=one_of('', 'broadcast', 'reduce'))
    split_bn: bool = option(False, 'statistics of each of the --aug-splits apart', resume='refused')


@group
class Ema:
    """Exponential moving average of the weights (EMA)."""
    model_ema: bool = option(False, 'keep one, and select the best checkpoint by it', card=True, synonyms=('ema',))
    model_ema_force_cpu: bool = option(False, 'on the CPU, without validation', needs='model_ema')
    model_ema_decay: float = option(0.9998, 'of an update',
        metavar='D', check=from_to_below(0, 1), needs='model_ema', card=True, synonyms=('ema_decay',))
    model_ema_warmup: bool = option(False, 'let the decay grow', needs='model_ema')


@group
class Distillation:
    """Distillation."""
    kd_model_name: str | None = option(None, 'teacher, with its pretrained weights', metavar='NAME', resume='refused')
    kd_distill_type: str = option('logit', 'by logits, by pooled features, or by the distillation head of the student',
        choices=('logit', 'feature', 'token'), needs='kd_model_name', resume='refused')
    kd_loss_type: str = option('kl', 'distance of logits', metavar='NAME', check=one_of('kl'), needs='kd_model_name')
    distill_loss_weight: float | None = option(
        None, 'weight of the distillation (default: 1, or 1 - --task-loss-weight where that is given)',
        metavar='W', check=at_least(0), needs='kd_model_name')
    task_loss_weight: float | None = option(None, 'weight of the classification loss (default: 1)',
        metavar='W', check=at_least(0), needs='kd_model_name')
    kd_temperature: float = option(4.0, 'of both softmaxes', metavar='T', check=above(0), needs='kd_model_name')
    kd_student_feature_dim: int | None = option(None, "(default: the student's)",
        metavar='N', check=at_least(1), needs='kd_model_name')
    kd_teacher_feature_dim: int | None = option(None, "(default: the teacher's)",
        metavar='N', check=at_least(1), needs='kd_model_name')
    kd_token_distill_type: str = option('soft', "the teacher's distribution, or its first choice",
        choices=('soft', 'hard'), needs='kd_model_name')
