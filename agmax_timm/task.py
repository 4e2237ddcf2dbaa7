"""AgMax as a timm training task: one network, two views, and a Q-network that is used in training only."""
import logging
from typing import Any, cast

import torch
import torch.nn as nn
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch.nn.parallel import DistributedDataParallel

from .loss import AgMaxLoss, Criterion
from .network import AgMaxModule, QNet, count_classes, init_normal
from .network import default_hidden as default_hidden

_logger = logging.getLogger(__name__)


class AgMaxTask(TrainingTask):
    """Train a classifier with AgMax. Replaces timm.task.ClassificationTask.

    The model that is evaluated, exported and saved is the plain classifier. The Q-network is saved in a
    checkpoint's `task_state`. Marginals are over the images of one forward pass on all ranks, or over groups of
    marginal_images. Under gradient accumulation, each batch of an update has its own marginals, and the loss is the
    mean over these batches. The agreement is then never below that of the whole update, because entropy is concave.

    Args:
        model: Classifier to train. It returns logits, or an output with the attribute `logits`, as in transformers.
        criterion: Classification loss on logits [2B, K], a module or a function that returns a scalar. None is
            cross-entropy on class indices or soft targets.
        kind: Form of the agreement: 'mi' (as published), 'mse', 'kl' or 'ce'. Only 'mi' has a Q-network.
        weight: Weight of the agreement.
        divergence_weight: Weight of the divergence.
        hidden: Number of hidden units of the Q-network. None is network.default_hidden(num_classes).
        init_std: Standard deviation of new normal weights for all Linear and Conv layers of the model and the
            Q-network. The published ImageNet runs used 0.2. None keeps the present weights.
        device: Device of the Q-network and the criterion. None is the model's.
        dtype: Dtype of the Q-network. None is the model's.
        verbose: Whether to log the settings.
        num_classes: Number of classes K. None is the model's attribute `num_classes` (timm) or `num_labels`
            (transformers), or else the number of outputs of its last linear layer.
        marginal_images: Number of images in a marginal (see loss.agreement_terms). None is all images of all ranks.
        divergence_reduction: 'mean' of the divergence over the classes, as published, or 'sum', K times as large.

    Raises:
        ValueError: The kind or the reduction is unknown, or there are fewer than 2 classes. Raised by forward if the
            input is not pairs of views, if marginal_images does not fit the batch, or if the model does not return one
            tensor of K logits per image. Raised by the first forward if the targets of the two views differ or are not
            distributions.

    Examples:

        ```python
        task = AgMaxTask(timm.create_model('resnet50'))
        result = task(input, target)  # input [2B, C, H, W] and target [2B], view-major
        result['loss'].backward()
        ```
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Criterion | None = None,
            *,
            kind: str = 'mi',
            weight: float = 1.0,
            divergence_weight: float = 4.0,
            hidden: int | None = None,
            init_std: float | None = None,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
            num_classes: int | None = None,
            marginal_images: int | None = None,
            divergence_reduction: str = 'mean',
    ):
        reference = next(model.parameters())
        super().__init__(device=device or reference.device, dtype=dtype or reference.dtype, verbose=verbose)
        self.num_classes = num_classes = count_classes(unwrap_model(model), 'AgMaxTask', num_classes)
        self._targets_are_checked = False
        self.loss = AgMaxLoss(
            criterion, kind, weight, divergence_weight, marginal_images, divergence_reduction).to(self.device)
        # Drawn on the CPU, as timm's models are: initial weights and later random numbers do not depend on the device.
        qnet = QNet(num_classes, hidden, 'cpu', self.dtype).to(self.device) if kind == 'mi' else None
        self.trainable_module: Any = AgMaxModule(model, qnet, num_classes)  # later compiled, or within DDP
        if init_std is not None:
            init_normal(self.trainable_module, init_std)
        if verbose:
            units = f', Q-network {2 * num_classes}-{qnet[0].out_features}-{num_classes}' if qnet is not None else ''
            name = getattr(self.loss.criterion, '__name__', type(self.loss.criterion).__name__)
            _logger.info(f'AgMaxTask: {self.loss.extra_repr()}, criterion={name}{units}')

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss, its parts and the logits of a batch.

        Args:
            input: Images [2B, C, H, W]: all first views, then all second views. For NaFlex models, the dict of their
                patches [2B, N, P].
            target: Class indices [2B] or soft targets [2B, K], in the order of the images.

        Returns:
            Dictionary of 'loss' (for backward), 'output' (logits [2B, K]), and the parts of the loss 'ce', 'agreement'
            and 'divergence'.
        """
        images = input['patches'] if isinstance(input, dict) else input
        if not isinstance(images, torch.Tensor):
            raise ValueError(f'two views need one input [2B, C, H, W], got a {type(images).__name__}: give the '
                             'DataLoader collate_fn=TwoViewCollate(), or load with create_two_view_loader')
        if len(images) % 2 or len(target) != len(images):
            raise ValueError(f'two views need input [2B, C, H, W] and as many targets, got input {[*images.shape]} and '
                             f'target {[*target.shape]}: load with create_two_view_loader')
        # Only once, because on a GPU the host waits for the result. The compiler cannot branch on values.
        if not self._targets_are_checked and not torch.compiler.is_compiling():
            check_targets(target)
            self._targets_are_checked = True
        logits, joint_logits = self.trainable_module(input)
        parts = self.loss(logits, joint_logits, target)
        return {'loss': parts.pop('loss'), 'output': logits, **parts}

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> 'AgMaxTask':
        """Wrap the model and the Q-network in one DistributedDataParallel.

        Args:
            device_ids: Device of this process in a list. None on a CPU.
            **ddp_kwargs: Further arguments of DistributedDataParallel.
        """
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None,  # type: ignore[override]  # timm's
                **compile_kwargs) -> nn.Module:
        """Compile the trained module (model and Q-network), the loss and the evaluated model.

        The loss is compiled without CUDA graphs, because its collective over the ranks cannot be part of one.

        Returns:
            The compiled model for evaluation.
        """
        kwargs = dict(backend=backend, mode=mode, **compile_kwargs)
        self.eval_model = cast(nn.Module, torch.compile(self.trainable_module.model, **kwargs))
        self.trainable_module = torch.compile(self.trainable_module, **kwargs)
        if backend != 'cudagraphs':
            self.loss.compile(**{**kwargs, 'mode': None if mode in ('reduce-overhead', 'max-autotune') else mode})
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the plain classifier or its EMA, without the Q-network; compiled if compile() was called."""
        resolved = super().get_eval_model(module=module, ema=ema)
        unwrapped = unwrap_model(resolved)
        return unwrapped.model if isinstance(unwrapped, AgMaxModule) else resolved

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the trained parameters.

        Args:
            exclude_head: Whether to leave out the classifier head, as adaptive gradient clipping does.

        Raises:
            ValueError: The head is to be left out, and the model has no `get_classifier`.
        """
        trained: AgMaxModule = unwrap_model(self.trainable_module)
        parameters = list(trained.parameters())
        if not exclude_head:
            return parameters
        get_classifier = getattr(trained.model, 'get_classifier', None)
        if get_classifier is None:
            raise ValueError(f'{type(trained.model).__name__} has no get_classifier, which names the head that '
                             'exclude_head leaves out')
        heads = get_classifier()
        heads = heads if isinstance(heads, (tuple, list)) else (heads,)
        head_ids = {id(parameter) for head in heads for parameter in head.parameters()}
        return [parameter for parameter in parameters if id(parameter) not in head_ids]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return {'qnet': state_dict}, or an empty dict without a Q-network."""
        qnet = self._qnet(module, ema)
        return {} if qnet is None else {'qnet': qnet.state_dict()}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load a state of get_task_state. A state without a Q-network keeps the present one, with a warning.

        Raises:
            ValueError: The state has a Q-network, this task has none, and strict is True.
        """
        qnet = self._qnet(module, ema)
        if not state or 'qnet' not in state:
            if qnet is not None:
                _logger.warning('The checkpoint holds no Q-network: it starts from new weights.')
            return
        if qnet is not None:
            qnet.load_state_dict(state['qnet'], strict=strict)
        elif strict:
            raise ValueError(f"the checkpoint holds a Q-network, but agreement kind '{self.loss.kind}' has none: "
                             "use kind 'mi', or strict=False to leave it out")

    def _qnet(self, module: nn.Module | None, ema: bool) -> QNet | None:
        module = module if module is not None else self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module).qnet


def check_targets(target: torch.Tensor) -> None:
    """Raise ValueError if class indices [2B] differ between the views, or soft targets [2B, K] do not add up to 1."""
    if target.ndim == 1 and not torch.equal(*target.chunk(2)):
        raise ValueError('the targets of the two views differ: input and target must hold all first views, then all '
                         'second views of the same images; load with create_two_view_loader')
    if target.ndim == 2:
        total = target.float().sum(dim=1)
        if ((total - 1).abs() > 0.05).any():  # a sum of float16 over many classes has a large rounding error
            raise ValueError(f'soft targets must add up to 1 for each view, got {total.min():g} to {total.max():g}: '
                             'AgMax is for one label per image')
