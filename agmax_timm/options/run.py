"""What a run logs, saves and publishes, and when it ends."""

from .declare import at_least, between, group, one_of, option
from .quantities import interval


@group
class Run:
    """Run."""
    seed: int = option(42, 'random seed',
        metavar='S', check=between(0, 2 ** 32 - 1), resume='refused within epoch', evaluation='machine', card=True)
    worker_seeding: str = option('all', 'seeding of loader processes: all or part, as in timm',
        check=one_of('all', 'part'))
    log_interval: int = option(50, 'number of updates between log lines',
        metavar='N', check=at_least(1), affects_result=False)
    val_interval: int = option(1, 'number of epochs between validations, each with a checkpoint',
        metavar='N', check=at_least(1))
    recovery_interval: int | str = option(
        0, 'number of updates between recovery files, or seconds such as 600s; 0: none',
        metavar='N', convert=interval, affects_result=False)
    nan_policy: str = option(
        'stop', 'if a loss or gradient is not finite: end the run (stop), or leave the update out (skip)',
        choices=('stop', 'skip'), affects_result=False)
    hang_timeout: float = option(
        1800.0, 'end the run if nothing happens for this time, and print where it hangs; 0: never',
        metavar='SECONDS', check=at_least(0), affects_result=False)
    early_stop: int = option(0, 'end the run after this number of evaluations without a better metric; 0: never',
        metavar='N', check=at_least(0), resume='ignored')
    early_stop_metric: str | None = option(None, 'metric of --early-stop (default: --eval-metric)',
        metavar='NAME', needs='early_stop', resume='ignored')
    early_stop_min_delta: float = option(
        0.0, 'smallest improvement that --early-stop counts; accuracies are in percent',
        metavar='D', check=at_least(0), needs='early_stop', resume='ignored')
    dry_run: bool = option(False, 'estimate time, memory and disk use, and write nothing',
        affects_result=False, recipe='left out')
    checkpoint_hist: int = option(10, 'number of best checkpoints to keep',
        metavar='N', check=at_least(1), affects_result=False)
    save_epochs: list[int] = option([], 'numbers of epochs after which the checkpoint is kept as milestone-N',
        metavar='N', check=at_least(1))
    output: str = option('', 'folder for all runs (default: output/train)',
        metavar='DIR', affects_result=False, recipe='left out', synonyms=('output_dir', 'save_dir'))
    experiment: str = option('', "name of the run's folder (default: time, model and image size)",
        metavar='NAME', affects_result=False, recipe='left out', synonyms=('name', 'run_name'))
    eval_metric: str = option('top1', 'metric that ranks the checkpoints; map by default for --task multilabel',
        metavar='NAME')
    save_images: bool = option(False, 'save a grid of views with their labels at log intervals', affects_result=False)
    result_json: bool = option(False, 'print the results as JSON, even on a terminal',
        yields=True, affects_result=False, recipe='left out')
    report: bool = option(False, 'evaluate the best weights at the end of the run, and write report.html',
        yields=True, affects_result=False)


@group
class Tracking:
    """TensorBoard and Weights & Biases."""
    log_tensorboard: bool = option(False, "log to TensorBoard, in the run's folder (needs tensorboard)",
        affects_result=False, recipe='left out', synonyms=('tensorboard',))
    log_wandb: bool = option(False, 'log to Weights & Biases (needs wandb)',
        affects_result=False, recipe='left out', synonyms=('wandb',))
    wandb_project: str | None = option(None, 'project in Weights & Biases',
        metavar='NAME', needs='log_wandb', affects_result=False, recipe='left out', former=('wandb_project_name',))
    wandb_tags: list[str] = option([], 'tags of the run in Weights & Biases',
        metavar='TAG', needs='log_wandb', affects_result=False, recipe='left out')
    wandb_resume_id: str = option('', 'run in Weights & Biases to continue, together with --resume',
        metavar='ID', needs='log_wandb', affects_result=False, recipe='left out')


@group
class Hub:
    """Hugging Face Hub."""
    push_to_hub: str = option(
        '', 'publish the best weights on the Hugging Face Hub at the end of the run; access is checked at its start',
        metavar='OWNER/NAME', affects_result=False, recipe='left out')
    hub_private: bool = option(False, 'publish in a private repository',
        requires='push_to_hub', affects_result=False, recipe='left out')
    hub_revision: str = option('', 'branch to publish on (default: main)',
        metavar='R', requires='push_to_hub', affects_result=False, recipe='left out')
    hub_pr: bool = option(False, 'publish as a pull request',
        requires='push_to_hub', affects_result=False, recipe='left out')
    hub_replace_card: bool = option(False, 'replace a README.md on the Hub that was changed since it was published',
        requires='push_to_hub', affects_result=False, recipe='left out')
    hub_replace_files: bool = option(
        False, 'replace or delete other model files on the Hub that were not published from here',
        requires='push_to_hub', affects_result=False, recipe='left out')
    hub_dataset: str = option('', 'name of the training data on the Hub, for the model card',
        metavar='OWNER/NAME', affects_result=False, recipe='left out')
    license: str = option(
        '',
        "licence of the weights, an identifier of the Hub's list or other:NAME (default: that of the weights that "
        'training started from, otherwise none is stated)',
        metavar='ID', affects_result=False, recipe='left out')
