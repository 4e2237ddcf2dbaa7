"""Runs without --agmax against loops over timm's library written out here: weights equal to the last bit."""
import itertools
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from timm.data import (
    AugMixDataset,
    FastCollateMixup,
    Mixup,
    NaFlexMixup,
    create_dataset,
    create_loader,
    create_naflex_loader,
)
from timm.layers import convert_splitbn_model
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model, save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from timm.utils import dispatch_clip_grad, random_seed

from agmax_timm.commands import train as train_cli

CPU = torch.device('cpu')
MEAN = STD = (0.5,) * 3
DEFAULT_SIZE = (3, 32, 32)
SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--epochs', '2']
MIXUP = dict(mixup_alpha=0.5, cutmix_alpha=1., label_smoothing=0.1, num_classes=3)


class Reference:
    """timm's parts in the order of a training script, and a loop over them.

    Defaults are those of the flags, where they differ from those of the library.
    """

    def __init__(self, photos, model='test_resnet', **model_kwargs):
        random_seed(42, 0)
        self.model = create_model(model, num_classes=3, **model_kwargs)
        self.train_set = create_dataset('', str(photos), split='train', is_training=True)
        self.eval_set = create_dataset('', str(photos), split='val')
        self.loader = self.task = None
        self.ema_decay = None

    def load(self, dataset=None, batch_size=4, prefetch=True, **kwargs):
        common = dict(mean=MEAN, std=STD, device=CPU, num_workers=0, use_prefetcher=prefetch)
        kwargs = {**dict(interpolation='random', scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], re_mode='pixel'), **kwargs}
        dataset = self.train_set if dataset is None else dataset
        self.loader = create_loader(dataset, DEFAULT_SIZE, batch_size, is_training=True, **kwargs, **common)
        self.eval_loader = create_loader(self.eval_set, DEFAULT_SIZE, batch_size, crop_pct=0.95, **common)

    def train(self, task, opt='sgd', lr=0.05, ema_decay=None, clip=None, autocast=nullcontext, scale=None,
              before_step=None, on_updates=False, mix=None, sched='cosine'):
        module = task.get_trainable_module()
        optimizer = create_optimizer_v2(module, opt, lr=lr, weight_decay=2e-5, momentum=0.9)
        if ema_decay is not None:
            task.setup_ema(decay=ema_decay)
        updates = itertools.count(1)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched, num_epochs=2, warmup_lr=1e-5, step_on_epochs=not on_updates,
            updates_per_epoch=len(self.loader))
        for epoch in range(2):
            for part in (self.loader.dataset, self.loader.batch_sampler):
                if hasattr(part, 'set_epoch'):
                    part.set_epoch(epoch)
            module.train()
            for input, target in self.loader:
                if mix is not None:
                    input, target = mix(input, target)
                optimizer.zero_grad()
                with autocast():
                    loss = task(input, target)['loss']
                count = len(target)
                (loss if scale is None else scale(count) * loss).backward()
                if clip is not None:
                    dispatch_clip_grad(task.get_clip_parameters(), value=clip)
                optimizer.step()
                step = next(updates)
                task.update_ema(step=step)
                scheduler.step_update(step)
            for _ in range(1 if ema_decay is None else 2):
                for _ in self.eval_loader:
                    pass
            scheduler.step(epoch + 1)
        return task.get_checkpoint_state()['state_dict'], task.get_checkpoint_state(ema=True).get('state_dict_ema')


@pytest.fixture
def run(photos, tmp_path):
    """Function: the raw and EMA weights of a run of train.py with these flags."""
    def weights(*argv):
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), '--experiment', 'run', *argv])
        with torch.serialization.safe_globals([Namespace]):
            checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)
        return checkpoint['state_dict'], checkpoint.get('state_dict_ema')
    return weights


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A folder with a ViT of random weights, as a model name."""
    folder = tmp_path_factory.mktemp('teacher')
    random_seed(1)
    save_for_hf(create_model('test_vit', num_classes=3, img_size=32), str(folder), model_args=dict(img_size=32))
    return f'local-dir:{folder}'


def assert_equal(ours, timms):
    for mine, theirs in zip(ours, timms):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(dict(mine), dict(theirs), rtol=0, atol=0)


def test_average_clipping_and_bfloat16_equal_timm(run, photos):
    reference = Reference(photos)
    reference.load()
    task = ClassificationTask(reference.model, LabelSmoothingCrossEntropy(0.1))
    expected = reference.train(
        task, opt='adamw', ema_decay=0.9, clip=1., autocast=lambda: torch.autocast('cpu', torch.bfloat16))
    assert_equal(run('--opt', 'adamw', '--model-ema', '--model-ema-decay', '0.9', '--clip-grad', '1', '--amp',
                     '--amp-dtype', 'bfloat16'), expected)


def test_policy_erasing_and_a_schedule_by_updates_equal_timm(run, photos):
    reference = Reference(photos)
    reference.load(auto_augment='rand-m9-mstd0.5', re_prob=0.6, re_count=2)
    task = ClassificationTask(reference.model, LabelSmoothingCrossEntropy(0.1))
    expected = reference.train(task, opt='lamb', on_updates=True, sched='poly')
    assert_equal(run('--opt', 'lamb', '--aa', 'rand-m9-mstd0.5', '--reprob', '0.6', '--recount', '2', '--sched',
                     'poly', '--sched-on-updates'), expected)


def test_binary_cross_entropy_on_mixed_images_equals_timm(run, photos):
    reference = Reference(photos)
    reference.load(collate_fn=FastCollateMixup(**MIXUP))
    task = ClassificationTask(reference.model, BinaryCrossEntropy(target_threshold=0.2, sum_classes=True))
    expected = reference.train(task)
    assert_equal(run('--bce-loss', '--bce-sum', '--bce-target-thresh', '0.2', '--mixup', '0.5', '--cutmix', '1'),
                 expected)


def test_mixing_without_the_prefetcher_equals_timm(run, photos):
    reference = Reference(photos)
    reference.load(prefetch=False)
    task = ClassificationTask(reference.model, SoftTargetCrossEntropy())
    expected = reference.train(task, mix=Mixup(**MIXUP, mode='elem'))
    assert_equal(run('--no-prefetcher', '--mixup', '0.5', '--cutmix', '1', '--mixup-mode', 'elem'), expected)


@pytest.mark.parametrize('split_bn', [False, True], ids=['', 'split batch norm'])
def test_augmix_splits_equal_timm(run, photos, split_bn):
    reference = Reference(photos)
    if split_bn:
        reference.model = convert_splitbn_model(reference.model, 3)
    reference.load(AugMixDataset(reference.train_set, num_splits=3), num_aug_splits=3, re_prob=0.5, re_split=True,
                   auto_augment='augmix-m5-w4-d2')
    task = ClassificationTask(reference.model, JsdCrossEntropy(num_splits=3, smoothing=0.1))
    expected = reference.train(task)
    assert_equal(run('--aug-splits', '3', '--jsd-loss', '--aa', 'augmix-m5-w4-d2', '--reprob', '0.5', '--resplit',
                     *['--split-bn'] * split_bn), expected)


@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_distillation_equals_timm(run, photos, teacher, kind):
    reference = Reference(photos)
    reference.load()
    common = dict(criterion=LabelSmoothingCrossEntropy(0.1), task_loss_weight=0.3, verbose=False)
    if kind == 'logit':
        task = LogitDistillationTask(reference.model, teacher, temperature=2., **common)
    else:
        task = FeatureDistillationTask(reference.model, teacher, **common)
    expected = reference.train(task)
    assert_equal(run('--kd-model-name', teacher, '--kd-distill-type', kind, '--task-loss-weight', '0.3',
                     '--kd-temperature', '2'), expected)


def test_distillation_to_a_token_equals_timm(run, photos, teacher):
    size = dict(embed_dim=16, depth=1, num_heads=2, img_size=32)
    reference = Reference(photos, 'deit_tiny_distilled_patch16_224', **size)
    reference.load()
    task = TokenDistillationTask(reference.model, teacher, LabelSmoothingCrossEntropy(0.1), distill_type='hard',
                                 distill_loss_weight=2., temperature=4.)
    # The flags' mean and std are the model's own.
    flags = ['--mean', *map(str, MEAN), '--std', *map(str, STD), '--crop-pct', '0.95', '--interpolation', 'bilinear']
    expected = reference.train(task)
    assert_equal(run(
        '--model', 'deit_tiny_distilled_patch16_224', '--model-kwargs', *(f'{k}={v}' for k, v in size.items()), *flags,
        '--kd-model-name', teacher, '--kd-distill-type', 'token', '--kd-token-distill-type', 'hard',
        '--distill-loss-weight', '2'), expected)


def test_scheduled_resolutions_equal_timm(run, photos):
    reference = Reference(photos)
    reference.load(
        input_size_choices=[24, 32, 40], batch_size_choices=[6, 4, 2], batch_choice_seed=42,
        batch_choice_schedule='progressive', batch_schedule_epochs=2)
    average = reference.loader.batch_sampler.average_batch_size
    task = ClassificationTask(reference.model, LabelSmoothingCrossEntropy(0.1))
    expected = reference.train(task, scale=lambda count: (count / average) ** 0.5)
    assert_equal(run('--train-img-sizes', '24', '32', '40', '--train-batch-sizes', '6', '4', '2',
                     '--train-size-schedule', 'progressive', '--variable-batch-loss-scale', 'sqrt'), expected)


def test_naflex_equals_timm(run, photos):
    size = dict(embed_dim=16, depth=1, num_heads=2)
    reference = Reference(photos, 'naflexvit_base_patch16_gap', **size)
    common = dict(mean=MEAN, std=STD, device=CPU, num_workers=0, batch_size=4)
    reference.loader = create_naflex_loader(
        reference.train_set, patch_size=(16, 16), train_seq_lens=(4, 9), is_training=True, interpolation='random',
        scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], mixup_fn=NaFlexMixup(**MIXUP, mixup_off_epoch=1), re_prob=0.5,
        re_mode='pixel', **common)
    reference.eval_loader = create_naflex_loader(reference.eval_set, patch_size=(16, 16), max_seq_len=9, **common)
    task = ClassificationTask(reference.model, SoftTargetCrossEntropy())
    expected = reference.train(task, scale=lambda count: count / 4.)
    assert_equal(run(
        '--model', 'naflexvit_base_patch16_gap', '--model-kwargs', *(f'{k}={v}' for k, v in size.items()),
        '--naflex-loader', '--naflex-train-seq-lens', '4', '9', '--naflex-max-seq-len', '9', '--mixup', '0.5',
        '--cutmix', '1', '--mixup-off-epoch', '1', '--reprob', '0.5'), expected)
