"""What a run logs, saves and publishes, and when it ends."""

from .declare import at_least, between, group, one_of, option
from .quantities import interval


@group
class Run:
    """Run."""
    seed: int = option(42, 'random seed',
        metavar='S', check=between(0, 2 ** 32 - 1), resume='refused within epoch', evaluation='machine', card=True)
    worker_seeding: str = option('all', 'all or part', check=one_of('all', 'part'))
    log_interval: int = option(50, 'updates between log lines', metavar='N', check=at_least(1), affects_result=False)
    val_interval: int = option(1, 'epochs between validations', metavar='N', check=at_least(1))
    recovery_interval: int | str = option(0, 'updates between recovery files, or seconds as in 600s',
        metavar='N', convert=interval, affects_result=False)
    nan_policy: str = option('stop', 'at a loss or gradient that is not finite: end the run, or leave the update out',
        choices=('stop', 'skip'), affects_result=False)
    hang_timeout: float = option(1800.0, 'end the run if nothing happens for so long, and say where it hangs; 0: never',
        metavar='SECONDS', check=at_least(0), affects_result=False)
    early_stop: int = option(0, 'end the run after N evaluations in a row without a better metric; 0: never',
        metavar='N', check=at_least(0), resume='ignored')
    early_stop_metric: str | None = option(None, 'which one (default: --eval-metric)',
        metavar='NAME', needs='early_stop', resume='ignored')
    early_stop_min_delta: float = option(0.0, 'better by more than this; top-1 is in percent',
        metavar='D', check=at_least(0), needs='early_stop', resume='ignored')
    dry_run: bool = option(
        False, 'only build all, train and evaluate for a few seconds, tell what the run would take, and write nothing',
        affects_result=False, recipe='left out')
    checkpoint_hist: int = option(10, 'checkpoints to keep', metavar='N', check=at_least(1), affects_result=False)
    save_epochs: list[int] = option([], 'keep milestone-N of these numbers of epochs for good',
        metavar='N', check=at_least(1))
    output: str = option('', '(default: output/train)',
        metavar='DIR', affects_result=False, recipe='left out', synonyms=('output_dir', 'save_dir'))
    experiment: str = option('', "name of the run's folder",
        metavar='NAME', affects_result=False, recipe='left out', synonyms=('name', 'run_name'))
    eval_metric: str = option('top1', 'selects the best checkpoint', metavar='NAME')
    save_images: bool = option(False, 'at log intervals, a grid of views and their labels', affects_result=False)
    report: bool = option(False, 'at the end, evaluate the best weights once more and write report.html',
        yields=True, affects_result=False)


@group
class Tracking:
    """TensorBoard and Weights & Biases."""
    log_tensorboard: bool = option(
        False, "rows of summary.csv and losses at log intervals, in the run's folder (needs tensorboard)",
        affects_result=False, recipe='left out', synonyms=('tensorboard',))
    log_wandb: bool = option(False, 'the same to Weights & Biases (needs wandb)',
        affects_result=False, recipe='left out', synonyms=('wandb',))
    wandb_project: str | None = option(None, 'project',
        metavar='NAME', needs='log_wandb', affects_result=False, recipe='left out', former=('wandb_project_name',))
    wandb_tags: list[str] = option([], 'tags',
        metavar='TAG', needs='log_wandb', affects_result=False, recipe='left out')
    wandb_resume_id: str = option('', 'run to continue with, together with --resume',
        metavar='ID', needs='log_wandb', affects_result=False, recipe='left out')


@group
class Hub:
    """Hugging Face Hub."""
    push_to_hub: str = option(
        '', 'publish the best weights at the end of the run; token and name are checked before it',
        metavar='OWNER/NAME', affects_result=False, recipe='left out')
    hub_private: bool = option(False, 'in a private repository', affects_result=False, recipe='left out')
    hub_revision: str = option('', 'on this branch (default: main)',
        metavar='R', affects_result=False, recipe='left out')
    hub_pr: bool = option(False, 'as a pull request', affects_result=False, recipe='left out')
    hub_replace_card: bool = option(
        False, 'write README.md anew, over what was changed there since it was published from here',
        affects_result=False, recipe='left out')
    hub_replace_files: bool = option(
        False, 'overwrite or delete other files of a model too that were not published from here',
        affects_result=False, recipe='left out')
    hub_dataset: str = option('', "the training data's name on the Hub, for the model card",
        metavar='OWNER/NAME', affects_result=False, recipe='left out')
    license: str = option(
        '',
        "licence of the weights, an identifier of the Hub's list or other:NAME (default: that of the weights that "
        'training started from, otherwise none is stated)',
        metavar='ID', affects_result=False, recipe='left out')
