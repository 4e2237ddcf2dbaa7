"""Runs that draw no random number, so they are the same on any number of ranks."""
CLASSES, TRAIN_IMAGES, EVAL_IMAGES = 8, 24, 23
# No augmentation, which --agmax refuses by its name: both views are the image itself.
STILL = '--scale 1 1 --ratio 1 1 --hflip 0 --color-jitter 0 --train-interpolation bilinear'.split()
# Deterministic: every image as it is. An epoch is one update of all 24 images, in whatever order, on 1, 2 or 4 ranks.
FLAGS = ['--model', 'test_vit', '--model-kwargs', 'depth=2', '--img-size', '32', '--num-classes', str(CLASSES),
         '-j', '0', *STILL, '--opt', 'sgd', '--lr', '0.01', '--sched', 'none', '--clip-grad', '1',
         '--warmup-epochs', '0', '--epochs', '4', '--model-ema', '--model-ema-decay', '0.5', '--checkpoint-hist', '1',
         '--device', 'cpu']
AGMAX = ['--agmax', '--agmax-init-std', '0.2']
