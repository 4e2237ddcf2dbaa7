"""Device, precision and processes."""

from .declare import any_number, at_least, group, option


@group
class Device:
    """Device and precision."""
    device: str = option('cuda', 'device to run on; the CPU is used if there is no CUDA device',
        affects_result=False, recipe='left out')
    amp: bool = option(False, 'use automatic mixed precision',
        evaluation='precision', card=True, synonyms=('apex_amp', 'fp16', 'mixed_precision', 'native_amp'))
    amp_dtype: str = option('float16', 'lower precision of --amp',
        choices=('float16', 'bfloat16'), needs='amp', evaluation='precision', synonyms=('bf16 bfloat16',))
    model_dtype: str | None = option(None, 'dtype of the weights (default: float32)',
        choices=('float32', 'float16', 'bfloat16'), evaluation='precision')
    channels_last: bool = option(False, 'use the channels_last memory layout', evaluation='precision')


@group
class TrainDevice(Device):
    """Device and precision."""
    device_modules: list[str] | None = option(None, 'Python modules of device backends to import',
        metavar='MODULE', affects_result=False, recipe='left out')
    synchronize_step: bool = option(False, 'wait for the device after each update', affects_result=False)
    local_rank: int = option(0, 'number of the process on its machine, set by old launchers',
        long='--local_rank', metavar='N', check=any_number('the environment of the launcher wins over it'),
        affects_result=False, recipe='left out')
    no_ddp_bb: bool = option(False, 'do not broadcast buffers in DDP')
    fsdp: bool = option(False, 'shard weights, gradients and optimizer state over the processes (FSDP2)')


@group
class ValidationDevice(Device):
    """Device and precision."""
    num_gpu: int = option(1, 'number of GPUs of one process; torchrun with one process for each GPU is faster',
        metavar='N', check=at_least(1), synonyms=('gpus', 'num_gpus'))
