"""Exported folders in transformers, without this package. timm is the oracle of pixels, logits and labels."""
import json

import pytest
import torch
from PIL import Image

from agmax_timm.weights.staging import stage
from tests.helpers.plain_timm import run_in_plain_timm

# One of each family of architectures that the tests train: side of the input, further arguments of create_model.
VIT = dict(embed_dim=32, depth=2, num_heads=2)
ARCHITECTURES = {
    'coat_lite_tiny': (32, dict(img_size=32, embed_dims=[16, 16, 16, 16])),  # whose tensors share memory
    'deit_tiny_distilled_patch16_224': (32, dict(img_size=32, **VIT)),
    'mobilenetv3_small_050': (32, {}),
    'mobilenetv4_conv_small': (32, {}),
    'naflexvit_base_patch16_gap': (32, VIT),
    'pit_ti_224': (64, dict(img_size=64, base_dims=[16, 16, 16], heads=[1, 2, 2])),
    'regnetx_002': (32, {}),
    'resnetv2_34': (32, dict(layers=[1, 1, 1, 1], channels=[16, 16, 32, 32], stem_chs=8)),
    'swin_tiny_patch4_window7_224': (56, dict(img_size=56, depths=[1, 1, 1, 1], embed_dim=24)),
    'test_byobnet': (32, {}),
    'test_coatnet': (160, {}),
    'test_convnext': (32, {}),
    'test_efficientnet': (32, {}),
    'test_efficientnet_ln': (32, {}),
    'test_mambaout': (32, {}),
    'test_maxvit': (160, {}),
    'test_nfnet': (32, {}),
    'test_resnet': (32, {}),
    'test_vit': (32, dict(img_size=32)),
}

PROGRAM = """
import json, sys, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

def difference(a, b):
    return (a - b).abs().max().item() if a.shape == b.shape else f'{tuple(a.shape)} {tuple(b.shape)}'

with torch.inference_mode():
    for folder in sys.argv[1:]:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        config = timm.data.resolve_model_data_config(model)
        mode = 'L' if config['input_size'][0] == 1 else 'RGB'
        image = Image.open('image.png').convert(mode)
        pixels = timm.data.create_transform(**config, is_training=False)(image)[None]
        processor = AutoImageProcessor.from_pretrained(f'./{folder}')
        processed = processor(image)['pixel_values']
        classifier = AutoModelForImageClassification.from_pretrained(f'./{folder}').eval()
        encoder = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=0).eval()
        embedder = AutoModel.from_pretrained(f'./{folder}').eval()
        found = dict(
            pixels=difference(pixels, processed),
            logits=difference(model(pixels), classifier(processed).logits),
            embedding=difference(encoder(pixels), embedder(processed).pooler_output),
            labels=list(classifier.config.id2label.values()),
            of_timm=model.pretrained_cfg['label_names'],
            descriptions=model.pretrained_cfg.get('label_descriptions'),
            probabilities=[model(pixels)[0].softmax(0).tolist(), model(pixels)[0].sigmoid().tolist()])
        if mode == 'RGB':
            best = pipeline('image-classification', classifier, image_processor=processor)(image, top_k=1)[0]
            found.update(best=best['label'], score=best['score'])
        print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def found(make_saved, tmp_path_factory):
    """The output of the program above for exported folders, by name: all architectures and the four below."""
    saved = {name: make_saved(architecture=name, size=size, model_args=model_args)
             for name, (size, model_args) in ARCHITECTURES.items()}
    saved.update(
        unknown=make_saved(num_classes=1000),
        synsets=make_saved(class_names=['n12620546', 'n04399382', 'other']),
        several=make_saved(options={'task': 'multilabel'}),
        gray=make_saved(in_chans=1, global_pool='max'))
    folder = tmp_path_factory.mktemp('exported')
    for name in saved:
        stage(saved[name], folder / name)
    pixels = torch.randint(256, (70, 90, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / 'image.png')
    return dict(zip(saved, map(json.loads, run_in_plain_timm(PROGRAM, *saved, cwd=folder).splitlines())))


def check(found, labels, several=False):
    """Check that transformers agrees with timm, and shows these labels."""
    assert found['pixels'] == 0
    assert max(found['logits'], found['embedding']) < 1e-5  # 0 on most CPUs: the layout of the pixels differs
    assert found['labels'] == found['of_timm'] == labels
    if 'best' in found:
        probabilities = found['probabilities'][several]
        assert found['score'] == pytest.approx(max(probabilities), abs=1e-6)
        assert found['best'] == labels[probabilities.index(max(probabilities))]


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_architecture_agrees_with_timm(found, architecture):
    check(found[architecture], ['ant', 'bee', 'cat'])
    assert not found[architecture]['descriptions']


def test_without_names_the_labels_are_indices(found):
    check(found['unknown'], [str(index) for index in range(1000)])


def test_synsets_are_described(found):
    check(found['synsets'], ['n12620546', 'n04399382', 'other'])
    assert found['synsets']['descriptions'] == {
        'n12620546': 'hip, rose hip, rosehip', 'n04399382': 'teddy, teddy bear', 'other': 'other'}


def test_several_labels_per_image_have_independent_probabilities(found):
    check(found['several'], ['ant', 'bee', 'cat'], several=True)
    softmax, sigmoid = found['several']['probabilities']
    assert max(softmax) != max(sigmoid)


def test_a_model_of_one_channel_agrees_with_timm(found):
    check(found['gray'], ['ant', 'bee', 'cat'])
