"""Flags of validate.py alone: how to run, what to measure, where to write it."""


def device(group):
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group.add_argument('--num-gpu', type=int, default=1, metavar='N',
                       help='GPUs of one process (torchrun with a process each is faster)')


def labels(group):
    group.add_argument('--real-labels', default='', metavar='FILE',
                       help="JSON of the ImageNet real labels, or 'imagenet' for timm's own")
    group.add_argument('--valid-labels', default='', metavar='FILE',
                       help="text file, a line each, of the model's outputs that are classes of the data, or one of "
                            "timm's: 'imagenet-a', 'imagenet-r', 'mini-imagenet'")
    group.add_argument('--metrics-avg', choices=('micro', 'macro', 'weighted'),
                       help='precision, recall and F1 as well, averaged so')


def results(group):
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    group.add_argument('--results-file', default='', metavar='FILE', help='write the results to this file')
    group.add_argument('--results-format', default='csv', choices=('csv', 'json'), help='its format')
    group.add_argument('--retry', action='store_true', help='with a smaller batch where memory does not suffice')
