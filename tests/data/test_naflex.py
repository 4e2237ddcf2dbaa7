"""NaFlex: two views of images in their own aspect ratio, as patches."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import NaFlexMixup, create_naflex_loader
from timm.models import create_model
from timm.utils import random_seed

from agmax_timm import AgMaxTask
from agmax_timm.base.errors import DamagedError
from agmax_timm.data.naflex import TwoViewMajor, create_naflex_train_loader
from agmax_timm.data.sources.dataset_factory import create_dataset


@pytest.fixture
def images(memory_dataset):
    """Function: images of different aspect ratios. Each has one colour, whose first channel is 10 times the index."""
    def make(count):
        pictures = [Image.fromarray(np.full((32 + 16 * (i % 3), 48, 3), 10 * i, dtype=np.uint8)) for i in range(count)]
        return memory_dataset(pictures)
    return make


SIZES = dict(patch_size=16, train_seq_lens=(4, 9), num_workers=0, device=torch.device('cpu'), mean=(0.,) * 3,
             std=(1.,) * 3)


def load(dataset, batch_size=8, **kwargs):
    return create_naflex_train_loader(
        dataset, **{'two_views': True, 'batch_size': batch_size, 'color_jitter': 0., **SIZES, **kwargs})


def test_batches_are_view_major(images):
    seen = []
    for input, target in load(images(16)):
        half = len(target) // 2
        assert len(input['patches']) == 2 * half and torch.equal(target[:half], target[half:])
        # The colour of an image is in every valid patch of it, whatever the crop.
        colour = torch.stack([patches[valid].mean() * 255 / 10 for patches, valid in
                              zip(input['patches'], input['patch_valid'])])
        torch.testing.assert_close(colour, target.float(), atol=0.2, rtol=0.)
        seen += target[:half].tolist()
    assert sorted(seen) == list(range(16))


def test_the_views_of_an_image_differ(memory_dataset):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    input, _ = next(iter(load(memory_dataset([Image.fromarray(noise)] * 8))))
    first, second = input['patches'].chunk(2)
    assert not torch.allclose(first, second)


def test_each_view_is_mixed_separately():
    class Halve(NaFlexMixup):
        def __call__(self, view, targets):
            calls.append(len(view))
            return [image / 2 for image in view], [target.float() + 0.5 for target in targets]
    calls = []
    pairs = [(torch.full((3, 4, 4), i), torch.full((3, 4, 8), i + 10)) for i in range(3)]
    images, targets = TwoViewMajor(Halve(num_classes=3))(pairs, [0, 1, 2])
    assert calls == [3, 3]
    assert [image.max().item() for image in images] == [0, 0.5, 1, 5, 5.5, 6]
    assert [target.item() for target in targets] == [0.5, 1.5, 2.5] * 2


def test_both_views_of_a_batch_are_mixed_or_neither_is():
    random_seed(0)
    mixup = TwoViewMajor(NaFlexMixup(num_classes=4, mixup_alpha=1., cutmix_alpha=0., prob=0.25))
    pairs = [(torch.rand(1, 4, 4), torch.rand(1, 4, 4)) for _ in range(4)]

    def count_mixed(calls):
        both = 0
        for _ in range(calls):
            views = torch.stack(mixup(pairs, [0, 1, 2, 3])[1]).chunk(2)
            first, second = [not view.equal(torch.eye(4)) for view in views]
            assert first == second
            both += first
        return both
    assert 10 < count_mixed(100) < 40  # 25 on average, with a standard deviation of 4.3
    mixup.mixup.mixup_off_epoch = 1
    mixup.set_epoch(1)
    assert count_mixed(20) == 0


def test_mixed_targets_are_distributions(images):
    mixup = dict(mixup_alpha=1., cutmix_alpha=0., num_classes=12, label_smoothing=0.)
    for _, target in load(images(12), mixup=mixup):
        torch.testing.assert_close(target.sum(dim=1), torch.ones(len(target)))
        first, second = target.chunk(2)
        assert not torch.equal(first, second), 'each view has its own amounts'


def test_a_published_policy_of_auto_augment_is_used(images):
    loader = load(images(16), auto_augment='cifar10')
    for views in loader.dataset.transforms.values():  # postponed, of two views
        policy, = (step.policy for step in views.transform.transform.transforms if hasattr(step, 'policy'))
        assert len(policy) == 25
        assert {op.kwargs['fillcolor'] for pair in policy for op in pair} == {(0, 0, 0)}
    assert all(input['patches'].isfinite().all() for input, _ in loader)


@pytest.mark.parametrize('mixup', [None, dict(mixup_alpha=1., num_classes=16)], ids=['whole', 'mixed'])
def test_one_view_equals_that_of_timm(images, mixup):
    def batches(create, **kwargs):
        random_seed(1)
        loader = create(images(16), batch_size=4, **SIZES, **kwargs)
        return [(input['patches'], target) for input, target in loader]
    ours = batches(create_naflex_train_loader, mixup=mixup)
    theirs = batches(create_naflex_loader, is_training=True, mixup_fn=mixup and NaFlexMixup(**mixup))
    assert len(ours) == len(theirs) > 1
    assert all(torch.equal(mine, timms) for pair in zip(ours, theirs) for mine, timms in zip(*pair))


class Unreadable:
    """Images of which one raises an error, as an unlabelled image or an augmentation may."""

    def __init__(self, dataset, error):
        self.dataset = dataset
        self.error = error

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == 3:
            raise self.error
        return self.dataset[index]


@pytest.mark.parametrize('two_views', [False, True])
@pytest.mark.parametrize('mixup', [None, dict(mixup_alpha=1., num_classes=16)], ids=['whole', 'mixed'])
def test_an_error_of_one_image_ends_the_epoch(images, two_views, mixup):
    for error in IndexError('of the data'), KeyError('of the data'):
        loader = load(Unreadable(images(16), error), two_views=two_views, mixup=mixup)
        with pytest.raises(type(error), match='of the data'):
            list(loader)
    loader = load(images(16), two_views=two_views, mixup=mixup)
    for later in loader.dataset.transforms.values():
        later.transform = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(loader)


def test_the_first_damaged_file_of_torchvision_ends_the_epoch(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / 'data')
    path = root / 'train' / 'bee' / '005.jpg'
    path.write_bytes(path.read_bytes()[:300])
    loader = load(create_dataset('torch/image_folder', str(root), 'train'), two_views=False)
    with pytest.raises(DamagedError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"'{path}' cannot be decoded: ") and '\n' not in str(caught.value)


@pytest.mark.parametrize('count', [8, 9, 15, 16, 17])
def test_no_batch_has_a_single_image(images, count):
    loader = load(images(count))
    sizes = [len(target) // 2 for _, target in loader]
    assert min(sizes) >= 2 and sum(sizes) > count - 8 and len(sizes) == len(loader)


def test_agmax_trains_on_batches_of_the_loader(images):
    model = create_model('naflexvit_base_patch16_gap', num_classes=12, embed_dim=16, depth=1, num_heads=2)
    input, target = next(iter(load(images(12))))
    result = AgMaxTask(model, verbose=False)(input, target)
    assert result['output'].shape == (len(target), 12)
    result['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('options, told', [
    ({}, False),
    ({'no_aug': True}, True),
    ({'no_aug': True, 're_prob': 0.5, 'mixup': dict(mixup_alpha=1., prob=0., num_classes=12)}, True),
    ({'scale': (1, 1), 'ratio': (1, 1), 'hflip': 0.}, True),
    ({'no_aug': True, 'mixup': dict(mixup_alpha=1., cutmix_alpha=0., num_classes=12)}, False),
], ids=str)
def test_views_that_cannot_differ_warn(images, caplog, options, told):
    load(images(16), **options)
    assert ('The two views of an image' in caplog.text) == told


def test_batches_of_single_images_are_refused(images):
    with pytest.raises(ValueError, match='batch_size of 8 or more'):
        load(images(16), batch_size=4)
    with pytest.raises(ValueError, match='batch_size of 8 or more, and 8 images or more'):
        load(images(1))
