"""The options of AgMax."""

from .declare import at_least, group, option


@group
class AgMax:
    """AgMax."""
    agmax: bool = option(False, 'train on two views of every image and reward agreement between their predictions',
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
