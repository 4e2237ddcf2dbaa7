"""The scripts in tools/ that make data and repeat the pilots of docs/results.md."""
import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.dataset_factory import DemoDataset
from agmax_timm.loss import agreement_terms

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))
import agreement_pilots
import class_prior_pilot
import image_folders
import subset

HOME = Path(__file__).parents[1]


def test_the_term_of_the_class_prior_makes_a_divergence_from_the_prior():
    logits, joint = torch.randn(16, 5, dtype=torch.double), torch.randn(8, 5, dtype=torch.double)
    prior = torch.tensor([8., 4, 2, 1, 1], dtype=torch.double) / 16
    z1, z2 = logits.chunk(2)
    expected = sum(F.kl_div(prior.log(), z.softmax(1).mean(0), reduction='sum') for z in (z1, z2, joint)) / 3
    agreement, _ = agreement_terms(z1, z2, joint)
    torch.testing.assert_close(agreement + class_prior_pilot.prior_term(logits, joint, prior), expected)


def test_class_sizes_fall_geometrically_and_images_are_of_their_class():
    images, _ = class_prior_pilot.demo_images()
    kept, sizes = class_prior_pilot.long_tailed(images, 10, seed=3)
    assert sorted(sizes.tolist(), reverse=True) == [round(100 * 10 ** (-rank / 9)) for rank in range(10)]
    assert len(set(kept.tolist())) == len(kept) and torch.equal(images.labels[kept].bincount(), sizes)


def test_the_remembered_prediction_is_the_running_mean():
    images, _ = class_prior_pilot.demo_images()
    step = agreement_pilots.Step(
        agreement_pilots.parse_arm('memory momentum=0.8'), torch.nn.Identity(), images, torch.Generator())
    first, second, indices = torch.randn(4, 10), torch.randn(4, 10), torch.tensor([5, 1, 7, 2])
    assert step.agree_with_memory(indices, first) == 0  # nothing is known of these images
    remembered = first.softmax(1)
    expected = (remembered * (remembered.log() - second.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(step.agree_with_memory(indices, second), expected)
    torch.testing.assert_close(step.memory[indices], 0.8 * remembered + 0.2 * second.softmax(1))


@pytest.mark.parametrize('text', ['nothing', 'memory weigth=1', 'ema batch=many', 'memory 3'])
def test_an_arm_that_does_not_exist_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        agreement_pilots.parse_arm(text)


def test_two_views_from_a_share_of_the_updates_on_or_in_every_nth():
    late, interval = map(agreement_pilots.parse_arm, ('late start=0.75', 'interval interval=3'))
    assert [number for number in range(8) if late.has_two_views(number, 8)] == [6, 7] and late.cost == 1.25
    assert [number for number in range(8) if interval.has_two_views(number, 8)] == [0, 3, 6]


@pytest.mark.slow
@pytest.mark.parametrize('form', agreement_pilots.FORMS)
def test_every_form_trains_for_its_cost_and_is_not_repeated(form, tmp_path, monkeypatch, image_folder):
    model = ' model=test_vit' if form == 'tokens' else ''
    arguments = [str(image_folder), '--epochs', '6', '--seeds', '1', '--csv', str(tmp_path / 'pilots.csv'),
                 '--arm', f'{form} batch=4 rate=0.001{model}']
    monkeypatch.setattr(sys, 'argv', ['agreement_pilots.py', *arguments])
    agreement_pilots.main()
    agreement_pilots.main()
    with open(tmp_path / 'pilots.csv', newline='') as file:
        row, = csv.DictReader(file)
    assert float(row['epochs']) * agreement_pilots.parse_arm(arguments[-1]).cost == pytest.approx(6, abs=1)


def test_the_summary_of_pilots_compares_with_an_arm_in_any_notation(tmp_path, monkeypatch, capsys):
    top1 = {'plain': [80., 81., 82.], 'memory': [81., 83., 85.]}  # differences 1, 2, 3: 2 ± 2.484
    monkeypatch.setattr(agreement_pilots.Images, 'of_folder', lambda *args: None)
    monkeypatch.setattr(agreement_pilots, 'train', lambda arm, images, held_out, seed, budget, dtype: {
        'top1': top1[arm.form][seed]})

    def main(*words):
        monkeypatch.setattr(sys, 'argv', ['agreement_pilots.py', '--csv', str(tmp_path / 'pilots.csv'), *words])
        agreement_pilots.main()

    arms = ['data', '--arm', 'plain batch=25', '--arm', 'memory batch=25', '--seeds', '0', '1', '2']
    main(*arms)
    main(*arms, '--epochs', '120')  # the default: nothing is repeated
    assert len(agreement_pilots.rows_of(tmp_path / 'pilots.csv')) == 6
    capsys.readouterr()
    main('--summary', 'plain rate=.1 batch=25')
    assert '83.00  +2.00 (-0.48 to 4.48)\n' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has no rows of 'plain batch=12 rate=0.1'"):
        main('--summary', 'plain batch=12')


@pytest.fixture
def image_folder(tmp_path):
    from PIL import Image
    for split in ('train', 'tune'):
        for name in ('a', 'b'):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for number in range(6):
                noise = torch.randint(256, (28, 28, 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(tmp_path / 'data' / split / name / f'{number}.png')
    return tmp_path / 'data'


@pytest.mark.parametrize('tune', [0, 2])
@pytest.mark.parametrize('classes', ['ab', 'b'])
def test_a_subset_has_the_first_images_and_divides_the_validation_images(tune, classes, tmp_path, monkeypatch):
    for split, name, number in ((s, c, i) for s in ('train', 'val', 'test') for c in 'ab' for i in range(5)):
        folder = tmp_path / 'source' / split / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{number}.png').write_text(f'{split} {name} {number}')
    for folder in ('train/.ipynb_checkpoints', '.hidden/a'):
        (tmp_path / 'source' / folder).mkdir(parents=True)
    words = ['subset.py', str(tmp_path / 'source'), str(tmp_path / 'target'), '--per-class', '3']
    words += ['--tune-per-class', str(tune)] if tune else []
    monkeypatch.setattr(sys, 'argv', words + (['--classes', classes] if classes != 'ab' else []))
    subset.main()
    found = {path.relative_to(tmp_path / 'target').as_posix(): path.read_text()
             for path in (tmp_path / 'target').glob('*/*/*')}
    numbers = {'train': range(3), 'test': range(5), 'tune': range(tune), 'val': range(tune, 5)}
    assert found == {f'{split}/{name}/{i}.png': f"{'val' if split == 'tune' else split} {name} {i}"
                     for split, kept in numbers.items() for name in classes for i in kept}
    assert {path.parent.name + path.name for path in (tmp_path / 'target').glob('*/*')} == {
        split + name for split, kept in numbers.items() if kept for name in classes}


@pytest.mark.parametrize('classes, words', [
    (['a', 'bb'], ["has no folders SPLIT/bb"]), (['c'], ['/train/c', 'has folders inside']), ([], ['/train/c'])])
def test_a_subset_without_a_class_or_with_nested_folders_is_refused(classes, words, tmp_path, monkeypatch, capsys):
    for name in ('a', 'c/d'):
        (tmp_path / 'source' / 'train' / name).mkdir(parents=True)
    monkeypatch.setattr(sys, 'argv', [
        'subset.py', str(tmp_path / 'source'), str(tmp_path / 'target'), '--per-class', '3',
        *(['--classes', *classes] if classes else [])])
    with pytest.raises(SystemExit):
        subset.main()
    told = capsys.readouterr().err
    assert all(word in told for word in words) and not (tmp_path / 'target').exists()


@pytest.mark.parametrize('splits, missing', [
    (('training', 'validation'), 'train and val'), (('train', 'validation'), 'val')])
def test_a_subset_of_splits_with_other_names_is_refused(splits, missing, tmp_path, monkeypatch, capsys):
    for split in splits:
        (tmp_path / 'source' / split / 'a').mkdir(parents=True)
    monkeypatch.setattr(sys, 'argv', [
        'subset.py', str(tmp_path / 'source'), str(tmp_path / 'target'), '--per-class', '2', '--tune-per-class', '1'])
    with pytest.raises(SystemExit):
        subset.main()
    assert f'has no folders {missing}: rename' in capsys.readouterr().err and not (tmp_path / 'target').exists()


def test_classes_are_single_folders_and_names_of_images_keep_the_order(tmp_path, monkeypatch):
    class Large(list):
        targets = [0] * 10_001  # only the first ones have an image

    images = Large((Image.new('L', (1, 1)), label) for label in (0, 1, 0))
    monkeypatch.setattr(image_folders, 'create_dataset', lambda *args, **kwargs: images)
    monkeypatch.setattr(image_folders, 'class_names', lambda dataset: ['T-shirt/top', 'Bag'])
    monkeypatch.setattr(sys, 'argv', ['image_folders.py', 'torch/x', str(tmp_path / 'out')])
    image_folders.main()
    assert sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.png')) == [
        f'{split}/{name}.png' for split in ('train', 'val')
        for name in ('Bag/00000', 'T-shirt-top/00000', 'T-shirt-top/00001')]


def test_a_named_data_set_is_written_as_folders_in_its_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['image_folders.py', 'demo', str(tmp_path / 'demo'), '--tune-per-class', '150'])
    image_folders.main()
    counts = [len([*(tmp_path / 'demo' / split).glob('*/*.png')]) for split in ('train', 'tune', 'val')]
    assert counts == [1000, 1500, 2500]
    for split in ('train', 'val'):
        demo, seen = DemoDataset(split), Counter()
        names = class_names(demo)
        for image, target in zip(demo.images, demo.targets.tolist()):
            part = 'tune' if split == 'val' and seen[target] < 150 else split
            path = tmp_path / 'demo' / part / names[target] / f'{seen[target]:04}.png'
            assert (np.asarray(Image.open(path).convert('L')) == image).all()
            seen[target] += 1
    with pytest.raises(SystemExit):
        image_folders.main()
    assert f"{tmp_path / 'demo'} exists: name a folder that does not" in capsys.readouterr().err
