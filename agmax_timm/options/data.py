"""The data: where it is, how it is loaded, and the input that the model gets."""

from .declare import above_to, at_least, between, group, one_of, option
from .quantities import memory

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


@group
class DataSet:
    """Data set."""
    data: str | None = option(None, 'folder or tar file of the data to train on',
        flag='', metavar='DIR', nargs='?', affects_result=False, recipe='left out')
    data_dir: str | None = option(None, 'the same; wins over DIR',
        metavar='DIR', affects_result=False, resume='logged', recipe='left out', evaluation='machine',
        synonyms=('data_path',))
    dataset: str = option(
        '',
        "'demo' (built in), or TYPE/NAME as in timm (torch/, hfds/, hfids/, tfds/, wds/); if empty, DIR is a "
        'folder or tar file of classes',
        metavar='NAME', resume='refused within epoch', evaluation='data')
    dataset_download: bool = option(False, 'let torch/ and tfds/ data sets download', affects_result=False)
    dataset_trust_remote_code: bool = option(False, 'let hfds/ run code of the data set', affects_result=False)
    check_data: bool = option(False, 'only read every image of the data, tell what is in it, and write data-check.csv',
        yields=True, affects_result=False, recipe='left out')
    class_map: str = option('', 'file of class names in order', metavar='FILE', recipe='file name', evaluation='labels')
    input_img_mode: str | None = option(None, 'PIL mode (default: RGB, or L for 1 channel)',
        metavar='MODE',
        check=one_of('', '1', 'L', 'P', 'I', 'F', 'LA', 'RGB', 'YCbCr', 'LAB', 'HSV', 'RGBA', 'RGBX', 'CMYK'),
        evaluation='labels')
    input_key: str | None = option(None, 'key of the image in the data set', metavar='KEY', evaluation='labels')
    target_key: str | None = option(None, 'key of the label in the data set', metavar='KEY', evaluation='labels')
    target_format: str | None = option(None, 'labels of --task multilabel (default: indices)',
        choices=('indices', 'multihot'), evaluation='labels')


@group
class Loading:
    """Loading of images, in training and evaluation."""
    batch_size: int = option(128, 'images a process in a batch; with --agmax, twice as many views',
        short='-b', metavar='N', check=at_least(1), card=True, synonyms=('bs',))
    workers: int = option(4, 'loader processes',
        short='-j', metavar='N', check=between(0, 1024), affects_result=False, evaluation='machine',
        synonyms=('num_workers',))
    pin_mem: bool = option(False, 'batches go to the device from pinned memory (default: where it is CUDA)',
        affects_result=False, evaluation='machine')
    no_pin_mem: bool = option(False, 'they do not: pinned memory cannot be swapped out',
        yields=True, affects_result=False, evaluation='machine')
    no_prefetcher: bool = option(False, 'normalise and mix outside of the prefetcher', evaluation='precision')


@group
class TrainData(Loading):
    """Training and validation data."""
    train_split: str = option('train', 'split to train on', metavar='NAME', resume='refused within epoch')
    val_split: str = option('validation', "split to validate on, '' for none", metavar='NAME')
    train_num_samples: int | None = option(None, 'training images, for iterable data sets',
        metavar='N', check=at_least(1), resume='refused within epoch')
    val_num_samples: int | None = option(None, 'validation images, for iterable data sets',
        metavar='N', check=at_least(1), needs='val_split')
    validation_batch_size: int | None = option(None, '(default: --batch-size)',
        short='-vb', metavar='N', check=at_least(0), needs='val_split')
    use_multi_epochs_loader: bool = option(False, 'keep the loader going between epochs', resume='refused within epoch')
    image_memory: str = option(
        '0.1',
        'keep the images of a folder decoded if they fit into this share of the free memory, or into an amount as '
        '8G; 0: never',
        metavar='SHARE', convert=memory, yields=True)
    epoch_repeats: float = option(0.0, 'passes an epoch, if iterable',
        metavar='N', check=at_least(0), resume='refused within epoch')
    max_damaged: float = option(
        0.01, 'stop beyond this share of training images that cannot be decoded; others take their place',
        metavar='SHARE', check=between(0, 1), affects_result=False)
    tta: int = option(0, "timm's average of N predictions in a row; above 1 refused: they are of different images",
        metavar='N', check=at_least(0))


@group
class ValidationData(Loading):
    """Loading of the data."""
    split: str = option('validation', 'split', metavar='NAME')
    num_samples: int | None = option(None, 'images in the split, for iterable data sets',
        metavar='N', check=at_least(1))
    batch_size: int = option(256, 'batch size', short='-b', metavar='N', check=at_least(1), card=True, synonyms=('bs',))


@group
class Input:
    """Input of the model."""
    img_size: int | None = option(None, "side of the input (default: the model's)",
        metavar='N', check=at_least(1), evaluation='input', synonyms=('image_size', 'imgsz'))
    input_size: list[int] | None = option(None, 'channels, height and width of the input',
        metavar='N', check=at_least(1), nargs=3, evaluation='input')
    crop_pct: float | None = option(None, 'centre crop in evaluation',
        metavar='PCT', check=between(0.1, 1, ', a share of the side'), evaluation='input')
    mean: list[float] | None = option(None, 'mean of the pixels in [0, 1]',
        metavar='MEAN', check=between(0, 1, ', for pixels in [0, 1]'), evaluation='input')
    std: list[float] | None = option(None, 'standard deviation of the pixels',
        metavar='STD', check=above_to(0, 1, ', for pixels in [0, 1]'), evaluation='input')
    interpolation: str = option('', 'resize in evaluation',
        metavar='NAME', check=one_of('', *INTERPOLATIONS), evaluation='input')


@group
class ValidationInput(Input):
    """Input of the model."""
    use_train_size: bool = option(False, "the model's training size, not its test size")
    crop_mode: str | None = option(None, 'squash, border or center',
        metavar='NAME', check=one_of('', 'squash', 'border', 'center'), evaluation='input')
    crop_border_pixels: int | None = option(None, 'pixels to trim off the border first', metavar='N', check=at_least(0))
    tf_preprocessing: bool = option(False, "TensorFlow's resize (needs tensorflow)")


@group
class NaFlex:
    """Images in their own aspect ratio and size (NaFlex)."""
    naflex_loader: bool = option(False, 'load so (needs a NaFlex model)',
        resume='refused within epoch', evaluation='data')
    naflex_max_seq_len: int = option(576, 'patches in evaluation',
        metavar='N', check=at_least(1), needs='naflex_loader', evaluation='labels')
    naflex_patchify_channels_first: bool = option(False, 'channels before pixels within a patch',
        needs='naflex_loader', evaluation='labels')


@group
class TrainNaFlex(NaFlex):
    """Images in their own aspect ratio and size (NaFlex)."""
    naflex_train_seq_lens: list[int] = option([128, 256, 576, 784, 1024], 'patches of a training image, to choose from',
        metavar='N', check=at_least(1), needs='naflex_loader', resume='refused within epoch')
    naflex_patch_sizes: list[int] | None = option(None, "sides of a patch to choose from (default: the model's)",
        metavar='N', check=at_least(1), needs='naflex_loader', resume='refused within epoch')
    naflex_patch_size_probs: list[float] | None = option(None, 'share of each (default: equal)',
        metavar='P', check=at_least(0), needs=('naflex_loader', 'naflex_patch_sizes'), resume='refused within epoch')
    naflex_loss_scale: str = option('linear', 'scale the gradient by the size of the batch',
        choices=('none', 'sqrt', 'linear'), needs='naflex_loader')
