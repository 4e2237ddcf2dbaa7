"""The data: where it is, how it is loaded, and the input that the model gets."""

from .declare import above_to, at_least, between, group, one_of, option
from .quantities import memory, split

# Kinds of data with another reader than torchvision's, see data_kinds.kind_of.
_BY_TIMM = ('folder', 'tar', 'hfds', 'hfids', 'tfds', 'wds')
_COUNTED = ('hfids', 'wds')  # kinds whose number of samples may be unknown
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


@group
class DataSet:
    """Data set."""
    data: str | None = option(None, 'folder or tar file of the data',
        long='', metavar='DIR', nargs='?', affects_result=False, recipe='left out')
    data_dir: str | None = option(
        None, 'folder or tar file of the data; with both, train.py uses this one and validate.py uses DIR',
        metavar='DIR', affects_result=False, resume='logged', recipe='left out', evaluation='machine',
        synonyms=('data_path',))
    dataset: str = option(
        '',
        'data set: demo (built in), or TYPE/NAME as in timm (torch/, hfds/, hfids/, tfds/, wds/); by default DIR '
        'is a folder or tar file with one folder for each class',
        metavar='NAME', resume='refused within epoch', evaluation='data')
    dataset_download: bool = option(False, 'download data sets of the types torch/, hfids/ and tfds/',
        affects_result=False)
    dataset_trust_remote_code: bool = option(
        False, 'run the code that a data set of the type hfds/ or hfids/ comes with',
        affects_result=False)
    check_data: bool = option(False, 'only check the data: read every image, print a summary and write data-check.csv',
        yields=True, affects_result=False, recipe='left out')
    class_map: str = option(
        '',
        "file of class names in the order of their indices; in validate.py also 'model', for the names that the "
        'model has',
        kinds=_BY_TIMM, metavar='FILE', recipe='file name', evaluation='labels')
    exif_orientation: bool = option(False, 'rotate images by their EXIF orientation, which photos of phones need',
        kinds=('folder', 'tar', 'hfds', 'hfids', 'wds'), yields=True, card=True, evaluation='labels')
    input_img_mode: str | None = option(None, 'PIL mode of the images (default: RGB, or L for 1 channel)',
        metavar='MODE',
        check=one_of('', '1', 'L', 'P', 'I', 'F', 'LA', 'RGB', 'YCbCr', 'LAB', 'HSV', 'RGBA', 'RGBX', 'CMYK'),
        evaluation='labels')
    input_key: str | None = option(None, 'key of the image in a sample of the data set (default: as in timm)',
        kinds=('folder', 'hfds', 'hfids', 'tfds', 'wds'), metavar='KEY', evaluation='labels')
    target_key: str | None = option(None, 'key of the label in a sample of the data set (default: as in timm)',
        kinds=('hfds', 'hfids', 'tfds', 'wds'), metavar='KEY', evaluation='labels')
    target_format: str | None = option(None, 'format of the labels for --task multilabel (default: indices)',
        choices=('indices', 'multihot'), evaluation='labels')


@group
class Loading:
    """Loading of images, in training and evaluation."""
    batch_size: int = option(128, 'number of images in a batch of one process; --agmax makes two views of each',
        short='-b', metavar='N', check=at_least(1), card=True, synonyms=('bs',))
    workers: int = option(4, 'number of loader processes',
        short='-j', metavar='N', check=between(0, 1024), affects_result=False, evaluation='machine',
        synonyms=('num_workers',))
    pin_mem: bool = option(False, 'copy batches to the device from pinned memory (default: if the device is CUDA)',
        unless='no_pin_mem', affects_result=False, evaluation='machine')
    no_pin_mem: bool = option(False, 'do not pin memory, which cannot be swapped out',
        yields=True, affects_result=False, evaluation='machine')
    no_prefetcher: bool = option(False, 'normalize images in the loader processes instead of on the device',
        evaluation='precision')


@group
class TrainData(Loading):
    """Training and validation data."""
    train_split: str = option('train', 'name of the split to train on', metavar='NAME', resume='refused within epoch')
    val_split: str = option(
        'validation',
        "name of the split to validate on; a number below 1 holds out this share of the training images of each "
        "class; '' for no validation",
        metavar='NAME', convert=split, resume='refused as share')
    val_split_seed: int | None = option(None, 'seed of the share that --val-split holds out (default: --seed)',
        metavar='S', check=between(0, 2 ** 32 - 1), yields=True, resume='refused as share')
    train_num_samples: int | None = option(None, 'number of training images, for hfids/ and wds/',
        kinds=_COUNTED, metavar='N', check=at_least(1), resume='refused within epoch')
    val_num_samples: int | None = option(None, 'number of validation images, for hfids/ and wds/',
        kinds=_COUNTED, metavar='N', check=at_least(1), needs='val_split')
    validation_batch_size: int | None = option(
        None, 'number of images in a batch of validation (default: --batch-size)',
        short='-vb', metavar='N', check=at_least(0), needs='val_split')
    use_multi_epochs_loader: bool = option(False, 'keep the loader processes between epochs',
        resume='refused within epoch')
    balanced_sampling: bool = option(
        False, 'draw the images of an epoch with replacement, so that all classes are equally frequent',
        yields=True, resume='refused within epoch', card=True)
    image_memory: str = option(
        '0.1',
        'keep the images of a folder decoded if they fit into this share of the free memory, or into an amount '
        'such as 8G for each process; 0: never',
        metavar='SHARE', convert=memory, unless='naflex_loader', yields=True)
    epoch_repeats: float = option(0.0, 'passes over the data in an epoch, for hfids/ and tfds/',
        kinds=('hfids', 'tfds'), metavar='N', check=at_least(0), resume='refused within epoch')
    max_damaged: float = option(
        0.01,
        'largest share of damaged training images, which other images replace; the run ends if it is exceeded',
        metavar='SHARE', check=between(0, 1), affects_result=False)
    tta: int = option(
        0,
        "number of predictions in a row that timm's script averages; more than 1 is refused, because "
        'they are of different images',
        metavar='N', check=at_least(0))


@group
class ValidationData(Loading):
    """Loading of the data."""
    split: str = option(
        'validation',
        'name of the split to evaluate; a number below 1 is the share of --train-split that a run with such a '
        '--val-split held out',
        metavar='NAME', convert=split, synonyms=('val_split',))
    train_split: str = option('train', 'split of which --split is a share, if it is a number',
        metavar='NAME', yields=True)
    val_split_seed: int | None = option(None, 'seed of the share that --split names (default: --seed)',
        metavar='S', check=between(0, 2 ** 32 - 1), yields=True)
    num_samples: int | None = option(None, 'number of images in the split, for hfids/ and wds/',
        kinds=_COUNTED, metavar='N', check=at_least(1))
    batch_size: int = option(256, 'number of images in a batch of one process',
        short='-b', metavar='N', check=at_least(1), card=True, synonyms=('bs',))


@group
class Input:
    """Input of the model."""
    img_size: int | None = option(None, "height and width of the input (default: the model's)",
        metavar='N', check=at_least(1), evaluation='input', synonyms=('image_size', 'imgsz'))
    input_size: list[int] | None = option(None, "channels, height and width of the input (default: the model's)",
        metavar='N', check=at_least(1), nargs=3, evaluation='input')
    crop_pct: float | None = option(
        None, "share of the image that the centre crop keeps in evaluation (default: the model's)",
        metavar='PCT', check=between(0.1, 1, ', a share of the side'), evaluation='input')
    mean: list[float] | None = option(
        None, "mean of the pixels in [0, 1], one value or one for each channel (default: the model's)",
        metavar='MEAN', check=between(0, 1, ', for pixels in [0, 1]'), evaluation='input')
    std: list[float] | None = option(
        None, "standard deviation of the pixels in [0, 1], one value or one for each channel (default: the model's)",
        metavar='STD', check=above_to(0, 1, ', for pixels in [0, 1]'), evaluation='input')
    interpolation: str = option('', "interpolation that resizes images in evaluation (default: the model's)",
        metavar='NAME', check=one_of('', *INTERPOLATIONS), evaluation='input')


@group
class ValidationInput(Input):
    """Input of the model."""
    use_train_size: bool = option(False, "use the model's input size of training instead of that of its evaluation")
    crop_mode: str | None = option(
        None, "crop of images that are not square: squash, border or center (default: the model's)",
        metavar='NAME', check=one_of('', 'squash', 'border', 'center'), evaluation='input')
    crop_border_pixels: int | None = option(
        None, 'number of pixels to cut off each border before images are resized (default: 0)',
        metavar='N', check=at_least(0))
    tf_preprocessing: bool = option(False, "use TensorFlow's resize (needs tensorflow)")


@group
class NaFlex:
    """Images in their own aspect ratio and size (NaFlex)."""
    naflex_loader: bool = option(
        False, 'load images in their own aspect ratio as sequences of patches (needs a NaFlex model)',
        resume='refused within epoch', evaluation='data')
    naflex_max_seq_len: int = option(576, 'largest number of patches of an image in evaluation',
        metavar='N', check=at_least(1), needs='naflex_loader', evaluation='labels')
    naflex_patchify_channels_first: bool = option(False, 'order the values of a patch by channel, then by pixel',
        needs='naflex_loader', evaluation='labels')


@group
class TrainNaFlex(NaFlex):
    """Images in their own aspect ratio and size (NaFlex)."""
    naflex_train_seq_lens: list[int] = option(
        [128, 256, 576, 784, 1024], 'numbers of patches of a training image; one is drawn for each batch',
        metavar='N', check=at_least(1), needs='naflex_loader', resume='refused within epoch')
    naflex_patch_sizes: list[int] | None = option(
        None, "sides of a patch; one is drawn for each batch (default: the model's)",
        metavar='N', check=at_least(1), needs='naflex_loader', resume='refused within epoch')
    naflex_patch_size_probs: list[float] | None = option(
        None, 'probability of each of --naflex-patch-sizes (default: equal)',
        metavar='P', check=at_least(0), needs='naflex_patch_sizes', resume='refused within epoch')
    naflex_loss_scale: str = option('linear', 'scale of the gradient by the number of images in a batch',
        choices=('none', 'sqrt', 'linear'), needs='naflex_loader')
