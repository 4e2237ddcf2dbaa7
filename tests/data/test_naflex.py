"""NaFlex: two views of images in their own aspect ratio, as patches."""
import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import create_model

from agmax_timm import AgMaxTask
from agmax_timm.data.naflex import TwoViewMajor, create_naflex_train_loader


@pytest.fixture
def images(memory_dataset):
    """Function: images of different aspect ratios. Each has one colour, whose first channel is 10 times the index."""
    def make(count):
        pictures = [Image.fromarray(np.full((32 + 16 * (i % 3), 48, 3), 10 * i, dtype=np.uint8)) for i in range(count)]
        return memory_dataset(pictures)
    return make


def load(dataset, batch_size=8, **kwargs):
    return create_naflex_train_loader(
        dataset, two_views=True, batch_size=batch_size, patch_size=16, train_seq_lens=(4, 9), num_workers=0,
        device=torch.device('cpu'), mean=(0.,) * 3, std=(1.,) * 3, color_jitter=0., **kwargs)


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
    def halve(view, targets):
        calls.append(len(view))
        return [image / 2 for image in view], [target.float() + 0.5 for target in targets]
    calls = []
    pairs = [(torch.full((3, 4, 4), i), torch.full((3, 4, 8), i + 10)) for i in range(3)]
    images, targets = TwoViewMajor(halve)(pairs, [0, 1, 2])
    assert calls == [3, 3]
    assert [image.max().item() for image in images] == [0, 0.5, 1, 5, 5.5, 6]
    assert [target.item() for target in targets] == [0.5, 1.5, 2.5] * 2


def test_mixed_targets_are_distributions(images):
    mixup = dict(mixup_alpha=1., cutmix_alpha=0., num_classes=12, label_smoothing=0.)
    for _, target in load(images(12), mixup=mixup):
        torch.testing.assert_close(target.sum(dim=1), torch.ones(len(target)))
        first, second = target.chunk(2)
        assert not torch.equal(first, second), 'each view has its own amounts'


def test_a_published_policy_of_auto_augment_is_used(images):
    loader = load(images(16), auto_augment='cifar10')
    for views in loader.dataset.transforms.values():
        policy, = (step.policy for step in views.transform.transforms if hasattr(step, 'policy'))
        assert len(policy) == 25
        assert {op.kwargs['fillcolor'] for pair in policy for op in pair} == {(0, 0, 0)}
    assert all(input['patches'].isfinite().all() for input, _ in loader)


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
    ({'no_aug': True, 're_prob': 0.5}, True),
    ({'scale': (1, 1), 'ratio': (1, 1), 'hflip': 0.}, True),
    ({'no_aug': True, 'mixup': dict(mixup_alpha=1., cutmix_alpha=0., num_classes=12)}, False),
], ids=str)
def test_views_that_cannot_differ_warn(images, caplog, options, told):
    load(images(16), **options)
    assert ('The two views of an image' in caplog.text) == told


def test_batches_of_single_images_are_refused(images):
    with pytest.raises(ValueError, match='batch_size of 8 or more'):
        load(images(16), batch_size=4)
