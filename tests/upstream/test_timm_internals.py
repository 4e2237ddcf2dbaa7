"""timm: fields and methods that it does not document."""
import operator
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup, auto_augment, create_loader, create_naflex_loader
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader
from timm.data.mixup import cutmix_bbox_and_lam, one_hot
from timm.data.readers.reader import Reader
from timm.data.scheduled_sampler import ScheduledTransformDataset
from timm.models import _builder, create_model, get_model_args
from timm.optim import create_optimizer_v2
from timm.task import ClassificationEvaluator, ClassificationTask, DistillationTeacher, LogitDistillationTask
from timm.utils import CheckpointSaver, NativeScaler
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler


class Images(Dataset):
    """Four images, with their index as target."""

    transform = None

    def __getitem__(self, index):
        image = Image.new('RGB', (16, 16), (50 * index,) * 3)
        return image if self.transform is None else self.transform(image), index

    def __len__(self):
        return 4


def training_loader(**kwargs):
    return create_loader(Images(), 16, 2, is_training=True, num_workers=0, device=torch.device('cpu'), **kwargs)


def test_random_erasing_is_called_with_normalised_batches():
    """--cutout, and colour jitter on the device: data/loader.py and data/arrays/install.py put them into the
    attribute `random_erasing` of timm's PrefetchLoader."""
    loader = training_loader(re_prob=0.)
    assert isinstance(loader, PrefetchLoader) and loader.random_erasing is None
    seen = []
    loader.random_erasing = lambda images: seen.append(images) or torch.zeros_like(images)
    assert not any(images.any() for images, _ in loader)
    assert torch.cat(seen).min() < 0  # levels have no sign
    assert loader.mean.shape == loader.std.shape == (1, 3, 1, 1) and loader.std.min() > 1  # levels, not shares
    assert loader.img_dtype == torch.float32 and loader.device.type == 'cpu'


def test_the_mixup_switch_goes_to_a_collate_function_by_its_type():
    """--mixup-off-epoch with --agmax: data/augmentation/mixup.py derives TwoViewCollate from FastCollateMixup, the only
    type to which timm's loader passes `mixup_enabled` on."""
    collate = FastCollateMixup(mixup_alpha=1., num_classes=4)
    loader = training_loader(collate_fn=collate)
    loader.mixup_enabled = False
    assert collate.mixup_enabled is False and loader.mixup_enabled is False
    loader.loader.collate_fn = lambda samples: samples
    loader.mixup_enabled = True
    assert loader.mixup_enabled is False


def test_the_loader_inside_a_prefetcher_can_be_replaced():
    """--resume within an epoch: data/resumption/loader.py puts its loader in the place of PrefetchLoader.loader."""
    loader = training_loader()
    batch = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    loader.loader = [batch, batch, batch]
    assert len(loader) == len(list(loader)) == 3


def test_multi_epochs_loader_keeps_one_iterator_and_wraps_the_batch_sampler():
    """--resume with --use-multi-epochs-loader: data/resumption/ opens `iterator` itself, and records the order in
    `batch_sampler.sampler`."""
    batches = BatchSampler(SequentialSampler(range(4)), 2, drop_last=False)
    loader = MultiEpochsDataLoader(range(4), batch_sampler=batches)
    assert loader.iterator is None
    assert loader.batch_sampler.sampler is batches
    loader.batch_sampler.sampler = [[3], [2]]
    loader.iterator = DataLoader.__iter__(loader)
    opened = loader.iterator
    assert [batch.tolist() for batch in loader] == [[3], [2]]
    assert [batch.tolist() for batch in loader] == [[3], [2]] and loader.iterator is opened


@pytest.mark.parametrize('kwargs', [{'mixup_alpha': 1.}, {'mixup_alpha': 1., 'cutmix_alpha': 1., 'switch_prob': 1.}])
def test_mixup_draws_lambda_for_each_element(kwargs):
    """--mixup and --cutmix with --agmax: TwoViewMixup in data/augmentation/mixup.py takes its draws from
    Mixup._params_per_elem."""
    mixup = Mixup(num_classes=4, prob=1., **kwargs)
    lam, use_cutmix = mixup._params_per_elem(64)
    assert lam.dtype == np.float32 and lam.shape == use_cutmix.shape == (64,)
    assert ((lam > 0) & (lam < 1)).all() and use_cutmix.all() == ('cutmix_alpha' in kwargs)
    mixup.mixup_enabled = False
    assert (mixup._params_per_elem(3)[0] == 1).all()


def test_mixup_keeps_its_arguments():
    """--mixup and --cutmix with --agmax: TwoViewMixup in data/augmentation/mixup.py reads these attributes of Mixup."""
    given = dict(mixup_alpha=.3, cutmix_alpha=.4, cutmix_minmax=None, switch_prob=.6, mode='elem', correct_lam=False,
                 label_smoothing=.2, num_classes=7)
    mixup = Mixup(prob=.5, **given)
    assert {name: getattr(mixup, name) for name in given} == given
    assert mixup.mix_prob == .5 and mixup.mixup_enabled is True
    assert Mixup(cutmix_minmax=(.2, .8), num_classes=7).cutmix_alpha == 1.


def test_parts_of_mixup():
    """--mixup and --cutmix with --agmax: data/augmentation/mixup.py makes boxes and targets with these two
    functions."""
    (top, bottom, left, right), lam = cutmix_bbox_and_lam((2, 3, 8, 8), .5, ratio_minmax=None, correct_lam=True)
    assert lam == pytest.approx(1 - (bottom - top) * (right - left) / 64)
    targets = one_hot(torch.tensor([1, 0]), 3, on_value=.8, off_value=.1)
    torch.testing.assert_close(targets, torch.tensor([[.1, .8, .1], [.8, .1, .1]]))


def test_the_function_of_an_augmentation_can_be_replaced():
    """--augment-backend fast: data/arrays/transform.py replaces AugmentOp.aug_fn, and looks it up by AugmentOp.name."""
    op = auto_augment.AugmentOp('Rotate', prob=1., magnitude=10, hparams={'img_mean': (1, 2, 3)})
    assert op.name == 'Rotate'
    calls = []
    op.aug_fn = lambda image, *levels, **kwargs: calls.append((image, levels, kwargs))
    op('image')
    (image, (angle,), kwargs), = calls
    assert image == 'image' and abs(angle) == 30 and kwargs.keys() == {'fillcolor', 'resample'}


def test_policies_keep_their_operations():
    """--augment-backend fast: data/arrays/transform.py rebuilds timm's policies from these attributes."""
    policy = auto_augment.auto_augment_transform('original', {})
    assert all(isinstance(op, auto_augment.AugmentOp) for ops in policy.policy for op in ops)
    rand = auto_augment.rand_augment_transform('rand-m9-n3', {})
    assert all(isinstance(op, auto_augment.AugmentOp) for op in rand.ops) and rand.num_layers == 3
    assert rand.choice_weights is None
    augmix = auto_augment.augment_and_mix_transform('augmix-m5-w4-d2', {})
    assert (augmix.alpha, augmix.width, augmix.depth, augmix.blended) == (1., 4, 2, False)
    calls = []
    augmix._apply_basic = lambda *args: calls.append(args)
    augmix('image')
    image, weights, share = calls[0]
    assert image == 'image' and weights.shape == (4,) and 0 <= share <= 1


def test_training_transforms_end_in_levels():
    """--augment-backend fast, --lighting and --train-crop-mode pad: data/augmentation/transforms.py and
    data/arrays/transform.py take the first step for the crop, and the last for the one that makes a tensor."""
    loader = training_loader(auto_augment='rand-m9', interpolation='random')
    first, *_, last = loader.dataset.transform.transforms
    assert type(first).__name__ == 'RandomResizedCropAndInterpolation'
    assert type(last).__name__ == 'MaybePILToTensor'
    assert first.scale == (.08, 1.) and isinstance(first.interpolation, tuple) and first.size == (16, 16)


def test_scheduled_data_sets_keep_transforms():
    """--train-img-sizes with --agmax: data/augmentation/transforms.py replaces ScheduledTransformDataset.transforms."""
    dataset = ScheduledTransformDataset(Images(), [str, repr])
    assert dataset.transforms == (str, repr) and isinstance(dataset.dataset, Images)


def test_the_schedule_of_naflex_batches():
    """--naflex-loader with --agmax: data/naflex.py reads the sizes of all batches from `_canonical_batch_schedule`,
    and replaces `transforms`."""
    loader = create_naflex_loader(
        Images(), is_training=True, train_seq_lens=(4,), max_seq_len=4, batch_size=2, num_workers=0, patch_size=8,
        device=torch.device('cpu'))
    dataset = loader.dataset
    assert [length for length, _ in dataset._canonical_batch_schedule] == [4] * len(dataset)
    assert sum(size for _, size in dataset._canonical_batch_schedule) == 4
    assert dataset.transforms and all(map(callable, dataset.transforms.values()))


def test_naflex_batches_are_made_in_place_of_mixup():
    """--naflex-loader: timm leaves out images whose loading fails. MakeBatch in data/naflex.py makes all images of a
    batch where timm calls `mixup_fn`, from what the transforms return. timm does not catch the errors of it."""
    def make(noted, targets):
        calls.append((noted, targets))
        raise KeyError('of an image')
    calls = []
    loader = create_naflex_loader(
        Images(), is_training=True, train_seq_lens=(4,), max_seq_len=4, batch_size=8, num_workers=0, patch_size=8,
        mixup_fn=make, device=torch.device('cpu'))
    loader.dataset.transforms = dict.fromkeys(loader.dataset.transforms, lambda image: 'noted')
    with pytest.raises(KeyError, match='of an image'):
        next(iter(loader))
    (noted, targets), = calls
    assert noted == ['noted'] * 4 and len(targets) == 4


def test_fields_of_the_checkpoint_saver(tmp_path):
    """All checkpoints of a run, and --resume: training/checkpoints/saver.py replaces CheckpointSaver's writing, and
    keeps its ranking in these fields."""
    model = torch.nn.Linear(1, 1)
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters(), lr=1.), checkpoint_dir=str(tmp_path),
                            recovery_dir=str(tmp_path), decreasing=True, max_history=3)
    assert (saver.model, saver.args, saver.amp_scaler, saver.task) == (model, None, None, None)
    assert (saver.checkpoint_files, saver.best_epoch, saver.best_metric) == ([], None, None)
    assert (saver.save_prefix, saver.recovery_prefix, saver.extension) == ('checkpoint', 'recovery', '.pth.tar')
    assert (saver.checkpoint_dir, saver.recovery_dir) == (str(tmp_path), str(tmp_path))
    assert (saver.decreasing, saver.cmp, saver.max_history) == (True, operator.lt, 3)
    assert saver.unwrap_fn(model) is model
    assert saver._checkpoint_path(7) == str(tmp_path / 'checkpoint-7.pth.tar')
    (tmp_path / 'checkpoint-1.pth.tar').touch()
    saver.checkpoint_files, saver.best_epoch, saver.best_metric = [(saver._checkpoint_path(1), .5)], 1, .5
    state = saver.state_dict(2, .6)
    assert state == {'checkpoint_files': [('checkpoint-1.pth.tar', .5)], 'best_epoch': 1, 'best_metric': .5,
                     'pending': (2, .6)}
    saver.checkpoint_files = []
    saver.load_state_dict({**state, 'pending': (None, None)})
    assert saver.checkpoint_files == [(saver._checkpoint_path(1), .5)]


def test_the_state_of_a_task_has_the_keys_of_a_checkpoint():
    """Checkpoints, --fsdp and the EMA: training/checkpoints/saver.py and assembly/sharding.py ask a task for these."""
    model = create_model('test_vit', num_classes=2)
    task = ClassificationTask(model, verbose=False)
    task.setup_ema(decay=.9)
    assert task.has_ema()
    assert set(task.get_checkpoint_state()) >= {'state_dict'}
    assert set(task.get_checkpoint_state(ema=True)) >= {'state_dict_ema'}
    assert task.get_trainable_module() is task.trainable_module
    assert task.get_trainable_module(ema=True).foreach is not None  # --fsdp turns it off
    calls = []
    model.no_sync = lambda: calls.append(1)
    task.no_sync()
    assert calls == [1]  # --fsdp gives its module one


def test_the_loss_scaler_keeps_the_scaler_of_torch():
    """--amp in float16 on CUDA: assembly/loss_scaler.py makes one call of NativeScaler two, with its `_scaler`."""
    scaler = NativeScaler(device='cpu')
    assert isinstance(scaler._scaler, torch.amp.GradScaler)
    assert scaler.state_dict_key == 'amp_scaler'
    assert scaler.state_dict() == scaler._scaler.state_dict()


def test_the_learning_rate_of_the_corrected_weight_decay_is_an_option_of_the_group():
    """weights/resume.py sets it to the present learning rate."""
    optimizer = create_optimizer_v2(torch.nn.Linear(1, 1), 'sgdc', lr=0.5)
    assert {group['max_lr_snapshot'] for group in optimizer.param_groups} == {0.5}


def test_lookahead_contains_the_optimizer_with_the_random_state():
    """training/checkpoints/state.py saves the random state of the optimizer inside."""
    optimizer = create_optimizer_v2(torch.nn.Linear(1, 1), 'lookahead_adahessian', lr=0.5)
    assert isinstance(optimizer._base_optimizer.generator, torch.Generator)


def test_the_normalisation_of_a_teacher():
    """--kd-model-name with --agmax: distillation.py normalises the teacher's input by `mean_kd` and `std_kd`.

    Without --agmax: assembly/objective.py sets `student_mean` and `student_std` to --mean and --std.
    """
    model = create_model('test_vit', num_classes=2)
    teacher = DistillationTeacher(model, num_classes=2, device=torch.device('cpu'))
    assert teacher.mean_kd.shape == teacher.std_kd.shape == (1, 3, 1, 1)
    torch.testing.assert_close(teacher.mean_kd.flatten(), torch.tensor(teacher.model.pretrained_cfg['mean']))
    task = LogitDistillationTask(model, teacher, device=torch.device('cpu'), verbose=False)
    assert task.student_mean.shape == task.student_std.shape == (1, 3, 1, 1)


def test_an_evaluator_counts_up_to_its_limit():
    """Metrics on several processes: evaluation/metrics.py leaves the padding of a distributed sampler out by
    `num_samples` and `max_samples`."""
    evaluator = ClassificationEvaluator(torch.device('cpu'), max_samples=3)
    evaluator.update(torch.eye(2), torch.tensor([0, 1]))
    assert (evaluator.max_samples, evaluator.num_samples) == (3, 2)


def test_names_of_files_come_from_one_method():
    """Folders of images: FolderReader in data/sources/folder.py has Reader._filename, from which timm makes `filename`
    and `filenames`."""
    class Numbers(Reader):
        def __len__(self):
            return 2

        def _filename(self, index, basename=False, absolute=False):
            return f'{index} {basename} {absolute}'

    assert Numbers().filename(1, absolute=True) == '1 False True'
    assert Numbers().filenames(basename=True) == ['0 True False', '1 True False']


def test_the_configuration_of_a_published_model(tmp_path):
    """Export, publishing, and local-dir: models: weights/staging.py and weights/checkpoint.py write and read
    config.json with functions of timm.models._hub."""
    from timm.models._hub import load_model_config_from_path, save_config_for_hf
    model = create_model('test_vit', num_classes=2)
    save_config_for_hf(model, str(tmp_path / 'config.json'), model_config={'label_names': ['a', 'b']})
    config, architecture, model_args = load_model_config_from_path(str(tmp_path))
    assert architecture == 'test_vit' and config['num_classes'] == 2 and config['label_names'] == ['a', 'b']
    assert model_args['num_classes'] == 2 and model_args['in_chans'] == 3


def test_the_arguments_that_made_a_model():
    """Checkpoints that name all arguments of their model: make_metadata() in weights/metadata.py."""
    args = get_model_args(create_model('test_vit', num_classes=2, in_chans=1, img_size=32))
    assert args.items() >= {'num_classes': 2, 'in_chans': 1, 'img_size': (32, 32)}.items()
    assert create_model('test_vit', **args).patch_embed.img_size == (32, 32)


def test_pretrained_weights_are_loaded_by_one_function(monkeypatch):
    """Resumed runs that would read or download initial weights: _without_pretrained_weights() in assembly/model.py."""
    loaded = []
    monkeypatch.setattr(_builder, 'load_pretrained', lambda model, **kwargs: loaded.append(type(model).__name__))
    for name in ('test_resnet', 'test_vit', 'fbnetc_100'):
        create_model(name, pretrained=True)
    assert loaded == ['ResNet', 'VisionTransformer', 'EfficientNet']


def test_files_of_labels():
    """--real-labels imagenet and --valid-labels imagenet-a: options/paths.py finds these files inside of timm."""
    from importlib.resources import files
    info = files('timm') / 'data' / '_info'
    for name in ('imagenet_real_labels.json', 'imagenet_a_indices.txt', 'imagenet_a_synsets.txt',
                 'imagenet_r_indices.txt'):
        assert (info / name).is_file(), name


def test_transforms_can_be_sent_to_workers():
    """Loader workers that are not forked: ArrayTransform in data/arrays/transform.py holds timm's operations."""
    rand = pickle.loads(pickle.dumps(auto_augment.rand_augment_transform('rand-m9', {})))
    assert rand.ops[0].name
