"""Groups of options, for commands that treat them differently."""

# Options of the launcher and the machine.
LAUNCHER = ('local_rank', 'rank', 'world_size', 'distributed', 'device', 'device_modules')
# Files and folders of the machine, accounts and choices of the person. They are not part of a recipe.
PERSONAL = (
    'config', 'data', 'data_dir', 'output', 'experiment', 'resume', 'no_resume_opt', 'start_epoch', 'dry_run',
    'check_data', 'log_tensorboard', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'push_to_hub',
    'hub_private', 'hub_revision', 'hub_pr', 'hub_replace_card', 'hub_replace_files', 'hub_dataset', 'license')
# Files that decide what is trained. A recipe has their names without folders.
FILES = ('class_map', 'class_stats', 'initial_checkpoint', 'pretrained_path')
FILES_OR_NUMBERS = ('loss_class_weight', 'loss_pos_weight')
# Options with no effect on the result: monitoring, saving, publishing and speed.
KEEPING = (
    'output', 'experiment', 'log_interval', 'save_images', 'report', 'recovery_interval', 'checkpoint_hist',
    'nan_policy', 'hang_timeout', 'max_damaged', 'check_data', 'dataset_download',
    'dataset_trust_remote_code', 'pin_mem', 'no_pin_mem', 'synchronize_step', 'dry_run', 'log_tensorboard', 'log_wandb',
    'wandb_project', 'wandb_tags', 'wandb_resume_id', 'push_to_hub', 'hub_private', 'hub_revision', 'hub_pr',
    'hub_replace_card', 'hub_replace_files', 'hub_dataset', 'license')
# What decides how the model of a run is evaluated. The config.json of an exported folder says the first.
OF_INPUT = ('model', 'num_classes', 'in_chans', 'img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
            'crop_mode', 'gp', 'model_kwargs')
OF_EVALUATION = ('class_map', 'input_img_mode', 'input_key', 'target_key', 'task', 'target_format',
                 'multilabel_threshold', 'naflex_max_seq_len', 'naflex_patchify_channels_first')
# What can change the last digits of an evaluation.
OF_ARITHMETIC = ('amp', 'amp_dtype', 'model_dtype', 'channels_last', 'fast_norm', 'no_prefetcher', 'torchscript',
                 'fuser', 'torchcompile', 'torchcompile_mode')
