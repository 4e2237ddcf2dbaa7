"""Data and options that differ from the checkpoint on resume are refused, logged or ignored."""
import re
import shutil
import tarfile
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from agmax_timm.assembly.optimizer import build_optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.base.signals import Interrupted
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.declare import declared, values
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import TrainOptions
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints import compatibility, resumed_run
from tests.helpers.exact import FLAGS, StopAfter, assert_equal, outcome
from tests.helpers.run_files import epochs_in, load

OPTIONS = declared(TrainOptions)
# The options that are not logged on resume, by what happens in place of it.
RULES = {
    'refused':
        'agmax agmax_loss agmax_units agmax_teacher agmax_teacher_topk model num_classes gp in_chans model_kwargs task '
        'split_bn kd_model_name kd_distill_type',
    'refused with optimizer':
        'freeze linear_probe opt opt_kwargs layer_decay layer_decay_min_scale layer_decay_no_opt_scale',
    'refused as share': 'val_split val_split_seed',
    'refused within epoch':
        'dataset train_split train_num_samples use_multi_epochs_loader balanced_sampling epoch_repeats aug_repeats '
        'grad_accum_steps seed train_img_sizes train_batch_sizes train_size_probs train_size_schedule '
        'train_size_schedule_spread train_size_random_mix train_batches_per_epoch naflex_loader naflex_train_seq_lens '
        'naflex_patch_sizes naflex_patch_size_probs',
    'schedule':
        'epochs sched sched_on_updates lr lr_base lr_base_size lr_base_scale lr_noise lr_noise_pct lr_noise_std '
        'lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay lr_decay_fn lr_stable_timescale warmup_lr warmup_epochs '
        'warmup_prefix min_lr cooldown_epochs patience_epochs decay_milestones decay_epochs decay_rate',
    'ignored':
        'data dataset_download dataset_trust_remote_code check_data workers pin_mem no_pin_mem max_damaged pretrained '
        'pretrained_path initial_checkpoint resume no_resume_opt init_std head_init_scale head_init_bias start_epoch '
        'stop_epoch log_interval recovery_interval nan_policy hang_timeout early_stop early_stop_metric '
        'early_stop_min_delta dry_run checkpoint_hist output experiment save_images result_json report log_tensorboard '
        'log_wandb wandb_project wandb_tags wandb_resume_id push_to_hub hub_private hub_revision hub_pr '
        'hub_replace_card hub_replace_files hub_dataset license device device_modules synchronize_step local_rank',
}


@pytest.fixture
def folder(photos, tmp_path):
    """A copy of the photos that a test may change."""
    return shutil.copytree(photos, tmp_path / 'photos')


@pytest.fixture
def argv(folder, tmp_path):
    return [str(folder), *FLAGS, '-j', '0', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto']


def test_a_renamed_class_is_refused_in_one_line(folder, argv, capsys):
    """Otherwise the outputs of the model would change their meaning without a message."""
    training.train(parse_train_args([*argv, '--stop-epoch', '1']))
    for split in ('train', 'val'):
        (folder / split / 'cat').rename(folder / split / 'dog')
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main(argv)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "without 'cat'" in line and ': restore' in line and '--initial-checkpoint' in line


def test_another_number_of_samples_is_logged_between_epochs(folder, argv, tmp_path, caplog):
    training.train(parse_train_args([*argv, '--stop-epoch', '1']))
    (folder / 'train' / 'ant' / '000.jpg').unlink()
    training.train(parse_train_args(argv))
    assert re.search('Not as in the checkpoint: 11 samples .*train.* 12', caplog.text)
    assert epochs_in(tmp_path / 'run') == [0, 1, 2]


def test_a_renamed_file_is_logged_between_epochs_and_refused_with_remembered_predictions(folder, argv, caplog):
    remembering = [*argv, '--agmax-teacher', 'memory', '--experiment', 'memory']
    for flags in (argv, remembering):
        training.train(parse_train_args([*flags, '--stop-epoch', '1']))
    folder = folder.rename(folder.with_name('moved'))
    argv[0] = remembering[0] = str(folder)
    training.train(parse_train_args([*argv, '--stop-epoch', '2']))
    assert 'other names of files' not in caplog.text  # the root does not matter
    (folder / 'train' / 'ant' / '000.jpg').rename(folder / 'train' / 'ant' / '099.jpg')
    with pytest.raises(OptionError, match='files of the train data have other names.* restore the files'):
        training.train(parse_train_args(remembering))
    training.train(parse_train_args(argv))
    assert re.search('Not as in the checkpoint: .*other names of files in the train data', caplog.text)


def test_another_augmentation_backend_is_logged(argv, caplog):
    """Free memory and installed packages influence the choice, so it is logged even if no option changed."""
    pytest.importorskip('cv2')
    argv += ['--agmax', '--image-memory', '0']
    training.train(parse_train_args([*argv, '--stop-epoch', '1']))
    training.train(parse_train_args([*argv, '--stop-epoch', '2']))
    assert 'views are made' not in caplog.text
    training.train(parse_train_args([*argv, '--augment-backend', 'timm']))
    assert 'by timm in place of from arrays' in caplog.text


def test_another_number_of_samples_within_an_epoch_is_refused_in_one_line(folder, argv, capsys):
    with pytest.raises(Interrupted):
        training.train(parse_train_args(argv), StopAfter(2))
    (folder / 'train' / 'ant' / '000.jpg').unlink()
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main(argv)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search('11 samples .*train.* 12: restore', line)


@pytest.mark.parametrize('rule', RULES)
def test_the_options_of_each_rule(rule):
    assert {name for name, option in OPTIONS.items() if option.resume == rule} == set(RULES[rule].split())


@pytest.mark.parametrize('name', sorted(OPTIONS))
def test_a_flag_that_differs_is_refused_logged_or_ignored(name):
    args = replace(parse_train_args(['data']), resume='FILE')
    saved = {**vars(args), name: {'nesterov': True} if name == 'opt_kwargs' else 'other'}
    flag, rule = '--' + name.replace('_', '-'), OPTIONS[name].resume
    if rule in ('refused', 'refused with optimizer'):
        with pytest.raises(OptionError, match=f'cannot continue with {flag} '):
            compatibility.compare_options(args, saved, within_epoch=False)
        return
    lines, same_schedule = compatibility.compare_options(args, saved, within_epoch=False)
    shown = compatibility._shown(vars(args)[name])
    assert lines == ([] if rule == 'ignored' else [f'{flag} {shown} in place of other'])
    assert same_schedule == (rule != 'schedule')
    if rule == 'refused within epoch':
        with pytest.raises(OptionError, match=f'would change with {flag} '):
            compatibility.compare_options(args, saved, within_epoch=True)


@pytest.mark.parametrize('before, now, refused', [
    ('', 'alpha=0.95', False), ('eps=1e-6', 'eps=1e-8', False), ('nesterov=True', 'nesterov=True alpha=0.95', False),
    ('', 'nesterov=False', True), ('alpha=0.95', 'amsgrad=True alpha=0.9', True)])
def test_arguments_of_the_optimizer_that_come_from_the_checkpoint_are_refused(before, now, refused):
    """A resumed optimizer keeps its own rate, momentum, alpha and the like; see weights/resume.py."""
    saved, options = (parse_train_args(['data', *(['--opt-kwargs', *words.split()] if words else [])])
                      for words in (before, now))
    options = replace(options, resume='FILE')
    if refused:
        with pytest.raises(OptionError, match='cannot continue with --opt-kwargs .*--no-resume-opt'):
            compatibility.compare_options(options, vars(saved), within_epoch=False)
    else:
        assert len(compatibility.compare_options(options, vars(saved), within_epoch=False)[0]) == 1


@pytest.mark.parametrize('before, now, refused', [
    ('0.1', '0', True), ('0', '0.1', True), ('0.1', '0.2', False), ('0', '0 --no-aug', False),
    ('0.1', '0 --no-resume-opt', False), ('0.1 --layer-decay 0.7', '0 --layer-decay 0.7', False),
    ('0.1 --opt-kwargs filter_bias_and_bn=False', '0 --opt-kwargs filter_bias_and_bn=False', False)])
def test_a_weight_decay_that_changes_the_groups_of_the_optimizer_is_refused(before, now, refused):
    """The oracle is the optimizer, which loads the state of other groups or does not."""
    def create(options):
        model = Namespace(get_trainable_module=lambda: torch.nn.Linear(2, 2))
        return build_optimizer(options, model)

    saved, options = (parse_train_args(f'DIR --resume auto --experiment run --weight-decay {words}'.split())
                      for words in (before, now))
    with pytest.raises(ValueError, match='parameter group') if refused else nullcontext():
        if not options.no_resume_opt:
            create(options).load_state_dict(create(saved).state_dict())
    with (pytest.raises(OptionError, match='cannot continue with --weight-decay .*: keep .* --no-resume-opt')
          if refused else nullcontext()):
        compatibility.compare_options(options, vars(saved), within_epoch=False)


@pytest.mark.parametrize('flags', ['--start-epoch 0', '--no-resume-opt', ''])
def test_an_epoch_that_is_trained_again_from_its_start_may_change(tmp_path, flags):
    path = tmp_path / 'recovery-0-2.pth.tar'
    data = {'train': {'samples': 12, 'classes': None, 'files': None}, 'validation': None, 'views': ''}
    torch.save({'args': values(parse_train_args(['DIR'])), 'agmax_state': {
        'position': {'epoch': 0, 'batch': 3}, 'data': data}}, path)
    options = parse_train_args(f'DIR --seed 7 --resume {path} {flags}'.split())
    with nullcontext() if flags else pytest.raises(OptionError, match='within an epoch, .* --seed 7 in place of 42'):
        assert not resumed_run.ResumedRun.read(options, data).exact
    data = {**data, 'train': {**data['train'], 'samples': 11}}
    with nullcontext() if flags else pytest.raises(OptionError, match='within an epoch, and there are 11 samples'):
        resumed_run.ResumedRun.read(replace(options, seed=42), data)


@pytest.mark.parametrize('before, now, change, refused', [
    ('--val-split 0.1', '--val-split 0.2', '--val-split 0.2 in place of 0.1', True),
    ('', '--val-split 0.1', '--val-split 0.1 in place of validation', True),
    ('--val-split 0.1', '--val-split 0.1 --seed 7', '--val-split-seed 7 in place of 42', True),
    ('--val-split 0.1', '--val-split test', '--val-split test in place of 0.1', False),
    ('', '--val-split test', '--val-split test in place of validation', False)])
def test_another_held_out_share_is_refused(before, now, change, refused):
    """Otherwise a run would be measured on images that it has trained on."""
    saved = vars(parse_train_args(['data', *before.split()]))
    options = replace(parse_train_args(['data', *now.split()]), resume='FILE')
    if refused:
        with pytest.raises(OptionError, match=f'{change}: keep the old value'):
            compatibility.compare_options(options, saved, within_epoch=False)
    else:
        changes, _ = compatibility.compare_options(options, saved, within_epoch=False)
        assert changes[0] == change


@pytest.mark.parametrize('flag', ['--train-split test', '--dataset hfds/other'])
def test_remembered_predictions_are_not_taken_for_those_of_other_data(flag):
    words = ['data', '--dataset', 'hfds/x', '--agmax-teacher', 'memory']
    saved = vars(parse_train_args(words))
    options = replace(parse_train_args([*words, *flag.split()]), resume='FILE')
    with pytest.raises(OptionError, match=f'cannot continue with {flag} in place of .*: keep the old value'):
        compatibility.compare_options(options, saved, within_epoch=False)
    options, saved = replace(options, agmax_teacher='none'), {**saved, 'agmax_teacher': 'none'}
    assert len(compatibility.compare_options(options, saved, within_epoch=False)[0]) == 1


def test_the_names_of_images_in_a_tar_file_are_compared(photos, tmp_path):
    def describe(*names):
        with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
            for source, name in zip(sorted((photos / 'train' / 'ant').iterdir()), names):
                tar.add(source, arcname=name)
        return compatibility.describe_data(create_dataset('', str(tmp_path / 'x.tar'), 'train'), None)

    saved, other = describe('ant/a.jpg', 'bee/b.jpg'), describe('ant/a.jpg', 'bee/c.jpg')
    options = replace(parse_train_args(['data']), resume='FILE')
    assert compatibility.compare_data(options, describe('ant/a.jpg', 'bee/b.jpg'), saved) == []
    assert compatibility.compare_data(options, other, saved) == ['other names of files in the train data']
    with pytest.raises(OptionError, match='remembered predictions would be taken for those of other images'):
        compatibility.compare_data(replace(options, agmax_teacher='memory'), other, saved)


def test_an_option_that_a_former_checkpoint_lacks_counts_as_its_default():
    args = replace(parse_train_args(['data', '--agmax', '--agmax-loss', 'kl']), resume='FILE')
    saved = {name: value for name, value in vars(args).items() if name not in ('agmax_loss', 'warmup_prefix')}
    with pytest.raises(OptionError, match='--agmax-loss kl in place of mi: keep'):
        compatibility.compare_options(args, saved, within_epoch=False)
    args = replace(args, agmax_loss='mi', warmup_prefix=True)
    assert compatibility.compare_options(args, saved, within_epoch=False) == (
        ['--warmup-prefix True in place of False'], False)


def test_a_former_checkpoint_has_the_loss_that_followed_from_other_options():
    args = replace(parse_train_args(['data', '--bce-loss', '--bce-pos-weight', '2']), resume='FILE')
    former = {**vars(args), 'loss': 'bce', 'loss_pos_weight': '2.0'}
    assert compatibility.compare_options(args, former, within_epoch=False) == ([], True)
    changes, _ = compatibility.compare_options(replace(args, bce_pos_weight=3.), former, within_epoch=False)
    assert changes == ['--bce-pos-weight 3.0 in place of 2.0']


def test_epochs_are_refused_within_an_epoch_of_a_progressive_schedule():
    args = replace(parse_train_args(['data']), resume='FILE', epochs=3)
    saved = {**vars(args), 'epochs': 4}
    assert compatibility.compare_options(args, saved, within_epoch=True)[0] == ['--epochs 3 in place of 4']
    saved['train_size_schedule'] = 'progressive'
    args = replace(args, train_size_schedule='progressive')
    assert compatibility.compare_options(args, saved, within_epoch=False)[0] == ['--epochs 3 in place of 4']
    with pytest.raises(OptionError, match='--epochs 3 in place of 4: keep'):
        compatibility.compare_options(args, saved, within_epoch=True)


def test_ignored_flags_change_no_result(folder, argv, tmp_path, caplog):
    """All at once, within an epoch: the weights equal those of the run without them, and nothing is logged."""
    argv += ['--agmax', '--mixup', '0.2', '--epochs', '2']
    training.train(parse_train_args([*argv, '--experiment', 'whole']))
    with pytest.raises(Interrupted):
        training.train(parse_train_args(argv), StopAfter(2))
    weights = str(tmp_path / 'whole' / 'last.pth.tar')
    training.train(parse_train_args([
        *argv, '--nan-policy', 'skip', '--hang-timeout', '600', '--max-damaged', '0.5', '--recovery-interval', '2',
        '--checkpoint-hist', '5', '--save-images', '--log-interval', '1', '--synchronize-step',
        '--head-init-scale', '2', '--head-init-bias', '1', '--initial-checkpoint', weights]))
    assert 'Not as in the checkpoint' not in caplog.text
    ours, expected = (load(tmp_path / name / 'last.pth.tar') for name in ('run', 'whole'))
    for name in ('state_dict', 'task_state', 'optimizer', 'metric'):
        assert_equal(ours[name], expected[name], name)
    assert_equal(ours['agmax_state']['ranks'], expected['agmax_state']['ranks'])
    assert outcome(tmp_path / 'run')['summary'] == outcome(tmp_path / 'whole')['summary']


@pytest.mark.parametrize('saved, words, smoothing', [
    ({'agmax': True, 'smoothing': 0.1}, '--agmax', 0.1),  # of an earlier version, or asked for then
    ({'agmax': True, 'smoothing': 0.1}, '--agmax --smoothing 0', 0.),
    ({'agmax': True, 'smoothing': 0.}, '--agmax', 0.),
    ({'agmax': True}, '--agmax', 0.),
    ({'agmax': False, 'smoothing': 0.}, '', 0.1),
])
def test_agmax_resumes_with_its_label_smoothing(tmp_path, caplog, saved, words, smoothing):
    path = tmp_path / 'last.pth.tar'
    torch.save({'args': saved}, path)
    with caplog.at_level('INFO'):
        options = resumed_run.keep_defaults(parse_train_args(['data', '--resume', str(path), *words.split()]))
    assert options.smoothing == smoothing
    assert caplog.messages == ([f"--smoothing 0.1, as in '{path}'"] if smoothing and words else [])


@pytest.mark.parametrize('words, seed, logged', [
    ('--val-split 0.1 --seed 7', 42, True),
    ('--val-split 0.1', 42, False),
    ('--val-split 0.1 --seed 7 --val-split-seed 7', 7, False),  # refused later
    ('--val-split val --seed 7', None, False),
])
def test_another_seed_resumes_with_the_same_validation_images(tmp_path, caplog, words, seed, logged):
    path = tmp_path / 'last.pth.tar'
    torch.save({'args': {'val_split': '0.1', 'val_split_seed': 42, 'seed': 42}}, path)
    with caplog.at_level('INFO'):
        options = resumed_run.keep_defaults(parse_train_args(['data', '--resume', str(path), *words.split()]))
    assert options.val_split_seed == seed
    assert caplog.messages == ([f"--val-split-seed 42, as in '{path}'"] if logged else [])
