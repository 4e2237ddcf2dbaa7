"""Flags of validate.py for other images than those of the data: corrupted, attacked, augmented."""


def corruptions(group):
    group.add_argument('--corruptions', nargs='+', metavar='NAME',
                       help="corrupt the images by these, 'common' (15) or 'all' (19); needs the extra robust, but not "
                            'with --corruptions-dir, of which they choose')
    group.add_argument('--corruptions-dir', default='', metavar='DIR',
                       help='corrupted images of the same classes, as ImageNet-C: DIR/NAME/1 to 5/CLASS/')
    group.add_argument('--severities', type=int, nargs='+', default=[1, 2, 3, 4, 5], metavar='N',
                       help='severities of both')


def augmented(group):
    group.add_argument('--stress', nargs='+', default=[], choices=('jitter', 'crop'),
                       help='strong colour jitter; random crops of 20 to 100 %% of the area')
    group.add_argument('--agreement', action='store_true',
                       help="how often two views of an image, by the training augmentation of the checkpoint or timm's "
                            'default, get the same label')
    group.add_argument('--calibration', action='store_true', help='expected calibration error (ECE), 15 bins')


def attacks(group):
    group.add_argument('--attack', choices=('fgsm', 'pgd'), help='change pixels so that the loss grows')
    group.add_argument('--attack-norm', default='linf', choices=('linf', 'l2'), help='what is bounded')
    group.add_argument('--attack-eps', type=float, nargs='+', metavar='EPS',
                       help='bounds: linf in 1/255 (default: 1 2 4 8), l2 of pixels in [0, 1] (default: 0.25 0.5 1 2)')
    group.add_argument('--attack-steps', type=int, default=10, metavar='N', help='steps of pgd')
    group.add_argument('--attack-step-size', type=float, metavar='S',
                       help='of pgd, in the unit of --attack-eps (default: 2.5 * EPS / N)')


def report(group):
    group.add_argument('--report-dir', default='', metavar='DIR',
                       help='folder for robustness.csv, .md and, with matplotlib, .png of all that is evaluated')
