"""The options of AgMax."""

from .declare import BELOW_1, at_least, between, group, option


@group
class AgMax:
    """AgMax."""
    agmax: bool = option(False, 'train on two views of every image, with the terms of AgMax in the loss',
        resume='refused')
    agmax_loss: str = option('mi', 'form of the agreement: mutual information as published (mi), or an alternative',
        choices=('mi', 'mse', 'kl', 'ce'), resume='refused', card=True)
    agmax_weight: float = option(1.0, 'weight of the agreement in the loss', metavar='W', check=at_least(0), card=True)
    agmax_divergence_weight: float = option(
        4.0, 'weight of the distance between the predictions of the views and the joint prediction',
        metavar='W', check=at_least(0), needs='agmax_loss mi', card=True)
    agmax_divergence_reduction: str = option(
        'mean', 'reduction of the divergence over the classes: mean, as published, or sum, which is K times as large',
        choices=('mean', 'sum'), requires='agmax_loss mi', card=True)
    agmax_marginal_images: int | None = option(
        None, 'number of images in a marginal (default: all images of a batch on all processes)',
        metavar='N', check=at_least(2), requires='agmax_loss mi', card=True)
    agmax_units: int | None = option(None, 'hidden units of the Q-network (default: by the number of classes)',
        metavar='N', check=at_least(1), requires='agmax_loss mi', resume='refused', card=True)


@group
class RememberedPredictions:
    """Agreement with remembered predictions, with one view of every image."""
    agmax_teacher: str = option(
        'none',
        'memory: train on one view of every image, and reward agreement with the earlier predictions for the '
        'image; not the published method',
        choices=('none', 'memory'), resume='refused', card=True)
    agmax_teacher_weight: float = option(0.5, 'weight of the agreement with the remembered prediction in the loss',
        metavar='W', check=at_least(0), requires='agmax_teacher memory', card=True)
    agmax_teacher_momentum: float = option(0.8, 'momentum of the remembered prediction, a running mean',
        metavar='B', check=BELOW_1, requires='agmax_teacher memory', card=True)
    agmax_teacher_ramp: float = option(0.2, 'share of the updates over which the weight grows from 0',
        metavar='SHARE', check=between(0, 1), requires='agmax_teacher memory', card=True)
    agmax_teacher_topk: int | None = option(None, 'number of classes of an image that are remembered (default: all)',
        metavar='K', check=at_least(1), requires='agmax_teacher memory', resume='refused', card=True)
