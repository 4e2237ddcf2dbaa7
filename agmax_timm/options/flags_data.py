"""Flags of the data: where it is, how it is loaded, how it is augmented and mixed."""
from ..base.command_line import add_pinning_flags, memory
from ..base.image_modes import BACKENDS


def dataset(parser, verb):
    parser.add_argument('data', nargs='?', metavar='DIR', help=f'folder or tar file of the data to {verb} on')
    group = parser.add_argument_group('data set')
    group.add_argument('--data-dir', metavar='DIR', help='the same; wins over DIR')
    group.add_argument('--dataset', default='', metavar='NAME',
                       help="'demo' (built in), or TYPE/NAME as in timm (torch/, hfds/, hfids/, tfds/, wds/); "
                            'if empty, DIR is a folder or tar file of classes')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ data sets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help='let hfds/ run code of the data set')
    group.add_argument('--check-data', action='store_true',
                       help='only read every image of the data, tell what is in it, and write data-check.csv')
    group.add_argument('--class-map', default='', metavar='FILE', help='file of class names in order'
                       + ("; 'model' for the names that the model has" if verb == 'evaluate' else ''))
    group.add_argument('--input-img-mode', metavar='MODE', help='PIL mode (default: RGB, or L for 1 channel)')
    group.add_argument('--input-key', metavar='KEY', help='key of the image in the data set')
    group.add_argument('--target-key', metavar='KEY', help='key of the label in the data set')
    group.add_argument('--target-format', choices=('indices', 'multihot'),
                       help='labels of --task multilabel (default: indices)')


def train_data(group):
    group.add_argument('--train-split', default='train', metavar='NAME', help='split to train on')
    group.add_argument('--val-split', default='validation', metavar='NAME',
                       help="split to validate on, '' for none")
    group.add_argument('--train-num-samples', type=int, metavar='N', help='training images, for iterable data sets')
    group.add_argument('--val-num-samples', type=int, metavar='N', help='validation images, for iterable data sets')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N',
                       help='images a process in a batch; with --agmax, twice as many views')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='(default: --batch-size)')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes')
    add_pinning_flags(group)
    group.add_argument('--no-prefetcher', action='store_true', help='normalise and mix outside of the prefetcher')
    group.add_argument('--use-multi-epochs-loader', action='store_true', help='keep the loader going between epochs')
    group.add_argument('--image-memory', type=memory, default='0.1', metavar='SHARE',
                       help='keep the images of a folder decoded if they fit into this share of the free memory, or '
                            'into an amount as 8G; 0: never')
    group.add_argument('--epoch-repeats', type=float, default=0., metavar='N', help='passes an epoch, if iterable')
    group.add_argument('--max-damaged', type=float, default=0.01, metavar='SHARE',
                       help='stop beyond this share of training images that cannot be decoded; others take their place')
    group.add_argument('--tta', type=int, default=0, metavar='N',
                       help="timm's average of N predictions in a row; above 1 refused: they are of different images")


def validation_data(group):
    group.add_argument('--split', default='validation', metavar='NAME', help='split')
    group.add_argument('--num-samples', type=int, metavar='N', help='images in the split, for iterable data sets')
    group.add_argument('-b', '--batch-size', type=int, default=256, metavar='N', help='batch size')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes')
    add_pinning_flags(group)
    group.add_argument('--no-prefetcher', action='store_true', help='normalise in the workers, not on the device')


def input(group):
    group.add_argument('--img-size', type=int, metavar='N', help="side of the input (default: the model's)")
    group.add_argument('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width of the input')
    group.add_argument('--crop-pct', type=float, metavar='PCT', help='centre crop in evaluation')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='mean of the pixels in [0, 1]')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='standard deviation of the pixels')
    group.add_argument('--interpolation', default='', metavar='NAME', help='resize in evaluation')


def validation_input(group):
    group.add_argument('--use-train-size', action='store_true', help="the model's training size, not its test size")
    group.add_argument('--crop-mode', metavar='NAME', help='squash, border or center')
    group.add_argument('--crop-border-pixels', type=int, metavar='N', help='pixels to trim off the border first')
    group.add_argument('--tf-preprocessing', action='store_true', help="TensorFlow's resize (needs tensorflow)")


def augmentation(group):
    group.add_argument('--no-aug', action='store_true', help='no augmentation at all')
    group.add_argument('--train-crop-mode', metavar='MODE',
                       help="rrc, rkrc, rkrr as in timm; pad: pad an eighth, crop at random (default: rrc)")
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', help='area of the crop')
    group.add_argument('--ratio', type=float, nargs='+', default=[3. / 4., 4. / 3.], metavar='R', help='its aspect')
    group.add_argument('--train-interpolation', default='random', metavar='NAME', help='resize in training')
    group.add_argument('--hflip', type=float, default=0.5, metavar='P', help='horizontal flip')
    group.add_argument('--vflip', type=float, default=0., metavar='P', help='vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='F', help='brightness, contrast, saturation')
    group.add_argument('--color-jitter-prob', type=float, metavar='P', help='share of jittered images (default: all)')
    group.add_argument('--grayscale-prob', type=float, metavar='P', help='share of gray images')
    group.add_argument('--gaussian-blur-prob', type=float, metavar='P', help='share of blurred images')
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment, RandAugment, AugMix or 3-augment, as in timm')
    group.add_argument('--augment-backend', default='auto', choices=BACKENDS,
                       help='timm: PIL images; fast: arrays, the same views to a level or two; auto: with --agmax fast '
                            'where each step has its equal')
    group.add_argument('--aug-repeats', type=float, default=0, metavar='N', help='repeated augmentation over ranks')
    group.add_argument('--aug-splits', type=int, default=0, metavar='N',
                       help='versions of each image in a batch, the first one clean: 0 or 2 and more')
    group.add_argument('--lighting', type=float, default=0., metavar='STD', help='PCA lighting, 0.1 as published')
    group.add_argument('--cutout', type=int, default=0, metavar='SIDE', help='one square of the mean colour, in pixels')
    group.add_argument('--reprob', type=float, default=0., metavar='P', help='random erasing')
    group.add_argument('--remode', default='pixel', help='const, rand or pixel')
    group.add_argument('--recount', type=int, default=1, metavar='N', help='regions to erase')
    group.add_argument('--resplit', action='store_true',
                       help='no erasing in the clean split, or without --aug-splits in the first half of the batch')


def mixing(group):
    group.add_argument('--mixup', type=float, default=0.0, metavar='ALPHA', help='MixUp')
    group.add_argument('--cutmix', type=float, default=0.0, metavar='ALPHA', help='CutMix')
    group.add_argument('--cutmix-minmax', type=float, nargs='+', metavar='PCT', help='CutMix by smallest, largest side')
    group.add_argument('--mixup-prob', type=float, default=1.0, metavar='P', help='share of batches or images mixed')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='share of CutMix of both')
    group.add_argument('--mixup-mode', default='batch', help='batch, pair or elem')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixing from this epoch on')


def resolutions(group):
    group.add_argument('--train-img-sizes', type=int, nargs='+', metavar='N', help='sides to choose from')
    group.add_argument('--train-batch-sizes', type=int, nargs='+', metavar='N',
                       help='batch size of each (default: --batch-size)')
    group.add_argument('--train-size-probs', type=float, nargs='+', metavar='P', help='share of each (default: equal)')
    group.add_argument('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
                       help='progressive moves from the first size to the last')
    group.add_argument('--train-size-schedule-spread', type=float, default=0.65, metavar='STD',
                       help='of the progressive choice, in steps of the list')
    group.add_argument('--train-size-random-mix', type=float, default=0.1, metavar='P',
                       help='share of sizes drawn at random in the progressive schedule')
    group.add_argument('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N',
                       help='fixed number of batches an epoch (default: by the sizes)')
    group.add_argument('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
                       help='scale the gradient by the size of the batch to their average')


def naflex(group):
    group.add_argument('--naflex-loader', action='store_true', help='load so (needs a NaFlex model)')
    group.add_argument('--naflex-max-seq-len', type=int, default=576, metavar='N', help='patches in evaluation')
    group.add_argument('--naflex-patchify-channels-first', action='store_true',
                       help='channels before pixels within a patch')


def train_naflex(group):
    group.add_argument('--naflex-train-seq-lens', type=int, nargs='+', default=[128, 256, 576, 784, 1024],
                       metavar='N', help='patches of a training image, to choose from')
    group.add_argument('--naflex-patch-sizes', type=int, nargs='+', metavar='N',
                       help="sides of a patch to choose from (default: the model's)")
    group.add_argument('--naflex-patch-size-probs', type=float, nargs='+', metavar='P',
                       help='share of each (default: equal)')
    group.add_argument('--naflex-loss-scale', default='linear', choices=('none', 'sqrt', 'linear'),
                       help='scale the gradient by the size of the batch')
