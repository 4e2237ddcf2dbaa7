"""Options of an update, losses that are never read, and updates that are not checked."""
from agmax_timm.training.updates.finite_check import CheckResult
from agmax_timm.training.updates.losses import RunningLosses

OPTIONS = dict(agmax=True, aug_splits=0, grad_accum_steps=1, distributed=False, no_prefetcher=False,
               channels_last=False, clip_grad=None, clip_mode='norm', world_size=1, synchronize_step=False,
               log_interval=100, nan_policy='stop')


class UnreadLosses(RunningLosses):
    """Losses of an epoch without a log interval. The end of an epoch, which would wait, is left out."""

    def read(self, when):
        return {}, {}


class NoCheck:
    """A FiniteCheck that checks nothing, and reads nothing from the device."""
    skips = has_late = False

    def check_losses(self, losses, last):
        pass

    def agree(self):
        return CheckResult([], [])

    def check_gradients(self, parameters, checked):
        return None
