"""Task and loss."""

from .declare import BELOW_1, INSIDE_0_1, POSITIVE, any_number, at_least, between, group, option


@group
class Task:
    """Task."""
    task: str = option(
        'classification', 'one class for each image (classification), or any number of labels (multilabel)',
        choices=('classification', 'multilabel'), resume='refused', evaluation='labels')
    multilabel_threshold: float = option(0.5, 'least probability at which F1 counts a label as predicted',
        metavar='P', check=INSIDE_0_1, evaluation='labels')


@group
class Loss:
    """Loss."""
    loss: str | None = option(None, 'loss function (default: ce, or bce for --task multilabel)',
        choices=('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db'))
    smoothing: float = option(
        0.1, 'label smoothing; 0 by default with --agmax, --agmax-teacher memory or --task multilabel',
        metavar='S', check=BELOW_1, card=True, synonyms=('label_smoothing',))
    jsd_loss: bool = option(False, 'same as --loss jsd: Jensen-Shannon divergence over --aug-splits')
    bce_loss: bool = option(False, 'same as --loss bce: binary cross-entropy', card=True)
    bce_sum: bool = option(False, 'sum the binary cross-entropy over the classes instead of averaging it')
    bce_target_thresh: float | None = option(
        None, 'threshold above which a soft target becomes 1 in bce (default: targets stay soft)',
        metavar='T', check=BELOW_1)
    bce_pos_weight: float | None = option(
        None, 'weight of positive targets in bce (default: 1)',
        metavar='W', check=POSITIVE, unless='loss_pos_weight')
    asl_gamma_pos: float = option(1.0, 'focusing parameter of positive targets in asl',
        metavar='G', check=at_least(0), needs='loss asl')
    asl_gamma_neg: float = option(4.0, 'focusing parameter of negative targets in asl',
        metavar='G', check=at_least(0), needs='loss asl')
    asl_clip: float = option(0.05, 'probability margin of negative targets in asl',
        metavar='P', check=BELOW_1, needs=('loss asl', 'task multilabel'))
    poly_epsilon: float = option(2.0, 'coefficient of the polynomial term in poly',
        metavar='E', check=any_number('a coefficient of the loss, whose publication has negative ones'),
        needs='loss poly')
    poly_gamma: float = option(0.0, 'focusing parameter of poly for --task multilabel',
        metavar='G', check=at_least(0), needs='loss poly')
    poly_alpha: float | None = option(None, 'balance of positive and negative targets in poly for --task multilabel',
        metavar='A', check=between(0, 1), needs='loss poly')
    twoway_tp: float = option(4.0, 'temperature of positive logits in twoway',
        metavar='T', check=POSITIVE, needs='loss twoway')
    twoway_tn: float = option(1.0, 'temperature of negative logits in twoway',
        metavar='T', check=POSITIVE, needs='loss twoway')
    db_neg_scale: float = option(2.0, 'scale of negative logits in db', metavar='S', check=POSITIVE, needs='loss db')
    db_init_bias: float = option(0.05, 'shift of the logits by the class prior in db',
        metavar='B', check=any_number('a shift of logits'), needs='loss db')
    db_focal_gamma: float = option(2.0, 'focusing parameter of db', metavar='G', check=at_least(0), needs='loss db')
    class_stats: str = option(
        '',
        'JSON file with pos_counts and num_samples, for db and for weights by frequency; auto: count the images of '
        'the training data',
        metavar='FILE', recipe='file name', is_file=True)
    loss_class_weight: str = option(
        '', 'weight of each class in ce, bce and asl: inv_freq, effective_num, numbers, or a file of numbers',
        metavar='W', recipe='file name or numbers')
    loss_pos_weight: str = option(
        '', 'weight of the positive targets of each class in bce and asl: neg_pos, numbers, or a file of numbers',
        metavar='W', recipe='file name or numbers')
    loss_weight_power: float = option(1.0, 'exponent of the weights inv_freq and neg_pos',
        metavar='P', check=any_number('an exponent, with a sign'))
    loss_weight_beta: float = option(0.999, 'beta of the weights effective_num', metavar='B', check=INSIDE_0_1)
    loss_weight_max: float | None = option(
        None, 'largest weight by frequency (default: no limit)',
        metavar='W', check=POSITIVE)
