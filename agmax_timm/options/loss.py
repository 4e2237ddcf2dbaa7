"""Task and loss."""

from .declare import above, any_number, at_least, between, from_to_below, group, inside, option


@group
class Task:
    """Task."""
    task: str = option('classification', 'one class an image, or any number',
        choices=('classification', 'multilabel'), resume='refused', evaluation='labels')
    multilabel_threshold: float = option(0.5, 'probability from which a label counts as predicted, in F1',
        metavar='P', check=inside(0, 1), evaluation='labels')


@group
class Loss:
    """Loss."""
    loss: str | None = option(None, '(default: ce, or bce of --task multilabel)',
        choices=('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db'))
    smoothing: float = option(0.1, 'label smoothing; 0 if multilabel',
        metavar='S', check=from_to_below(0, 1), card=True, synonyms=('label_smoothing',))
    jsd_loss: bool = option(False, '--loss jsd: Jensen-Shannon over --aug-splits')
    bce_loss: bool = option(False, '--loss bce: binary cross-entropy', card=True)
    bce_sum: bool = option(False, 'summed over classes')
    bce_target_thresh: float | None = option(None, 'targets above this become 1',
        metavar='T', check=from_to_below(0, 1))
    bce_pos_weight: float | None = option(None, 'weight of positive targets', metavar='W', check=above(0))
    asl_gamma_pos: float = option(1.0, 'focus on positive targets', metavar='G', check=at_least(0))
    asl_gamma_neg: float = option(4.0, 'focus on negative targets', metavar='G', check=at_least(0))
    asl_clip: float = option(0.05, 'margin of negative targets', metavar='P', check=from_to_below(0, 1))
    poly_epsilon: float = option(2.0, 'coefficient of Poly-1',
        metavar='E', check=any_number('a coefficient of the loss, whose publication has negative ones'))
    poly_gamma: float = option(0.0, 'its focus, multilabel', metavar='G', check=at_least(0))
    poly_alpha: float | None = option(None, 'its balance, multilabel', metavar='A', check=between(0, 1))
    twoway_tp: float = option(4.0, 'temperature of positive logits', metavar='T', check=above(0))
    twoway_tn: float = option(1.0, 'temperature of negative logits', metavar='T', check=above(0))
    db_neg_scale: float = option(2.0, 'scale of negative logits', metavar='S', check=above(0))
    db_init_bias: float = option(0.05, 'shift by the class prior', metavar='B', check=any_number('a shift of logits'))
    db_focal_gamma: float = option(2.0, 'focus', metavar='G', check=at_least(0))
    class_stats: str = option('', 'JSON of pos_counts and num_samples, for db and for weights by frequency',
        metavar='FILE', recipe='file name', is_file=True)
    loss_class_weight: str = option(
        '', 'of each class in bce and asl: inv_freq, effective_num, numbers or a file of such',
        metavar='W', recipe='file name or numbers')
    loss_pos_weight: str = option('', 'of positive targets in bce and asl: neg_pos, numbers or a file of such',
        metavar='W', recipe='file name or numbers')
    loss_weight_power: float = option(1.0, 'of inv_freq and neg_pos',
        metavar='P', check=any_number('an exponent, with a sign'))
    loss_weight_beta: float = option(0.999, 'of effective_num', metavar='B', check=inside(0, 1))
    loss_weight_max: float | None = option(None, 'largest weight by frequency', metavar='W', check=above(0))
