"""Flags of training itself: AgMax, task and loss, optimizer, schedule, and what a run writes."""
from ..base.command_line import KeyValues, add_dataset_flag, interval
from ..base.licences import add_license_flag


def agmax(group):
    group.add_argument('--agmax', action='store_true', help='two views of every image, and a reward if they agree')
    group.add_argument('--agmax-loss', default='mi', choices=('mi', 'mse', 'kl', 'ce'),
                       help='agreement: mutual information as published, or an alternative')
    group.add_argument('--agmax-weight', type=float, default=1.0, metavar='W',
                       help='weight of the agreement')
    group.add_argument('--agmax-divergence-weight', type=float, default=4.0, metavar='W',
                       help='weight of the distance from the joint prediction')
    group.add_argument('--agmax-units', type=int, metavar='N',
                       help='hidden units of the Q-network (default: by the number of classes)')
    group.add_argument('--agmax-init-std', type=float, metavar='STD',
                       help="N(0, STD) for all Linear and Conv weights, 0.2 as published (default: the model's own)")


def task(group):
    group.add_argument('--task', default='classification', choices=('classification', 'multilabel'),
                       help='one class an image, or any number')
    group.add_argument('--multilabel-threshold', type=float, default=0.5, metavar='P',
                       help='probability from which a label counts as predicted, in F1')


def loss(group):
    group.add_argument('--loss', choices=('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db'),
                       help='(default: ce, or bce of --task multilabel)')
    group.add_argument('--smoothing', type=float, default=0.1, metavar='S', help='label smoothing; 0 if multilabel')
    group.add_argument('--jsd-loss', action='store_true', help='--loss jsd: Jensen-Shannon over --aug-splits')
    group.add_argument('--bce-loss', action='store_true', help='--loss bce: binary cross-entropy')
    group.add_argument('--bce-sum', action='store_true', help='summed over classes')
    group.add_argument('--bce-target-thresh', type=float, metavar='T', help='targets above this become 1')
    group.add_argument('--bce-pos-weight', type=float, metavar='W', help='weight of positive targets')
    group.add_argument('--asl-gamma-pos', type=float, default=1., metavar='G', help='focus on positive targets')
    group.add_argument('--asl-gamma-neg', type=float, default=4., metavar='G', help='focus on negative targets')
    group.add_argument('--asl-clip', type=float, default=0.05, metavar='P', help='margin of negative targets')
    group.add_argument('--poly-epsilon', type=float, default=2., metavar='E', help='coefficient of Poly-1')
    group.add_argument('--poly-gamma', type=float, default=0., metavar='G', help='its focus, multilabel')
    group.add_argument('--poly-alpha', type=float, metavar='A', help='its balance, multilabel')
    group.add_argument('--twoway-tp', type=float, default=4., metavar='T', help='temperature of positive logits')
    group.add_argument('--twoway-tn', type=float, default=1., metavar='T', help='temperature of negative logits')
    group.add_argument('--db-neg-scale', type=float, default=2., metavar='S', help='scale of negative logits')
    group.add_argument('--db-init-bias', type=float, default=0.05, metavar='B', help='shift by the class prior')
    group.add_argument('--db-focal-gamma', type=float, default=2., metavar='G', help='focus')
    group.add_argument('--class-stats', default='', metavar='FILE',
                       help='JSON of pos_counts and num_samples, for db and for weights by frequency')
    group.add_argument('--loss-class-weight', default='', metavar='W',
                       help='of each class in bce and asl: inv_freq, effective_num, numbers or a file of such')
    group.add_argument('--loss-pos-weight', default='', metavar='W',
                       help='of positive targets in bce and asl: neg_pos, numbers or a file of such')
    group.add_argument('--loss-weight-power', type=float, default=1., metavar='P', help='of inv_freq and neg_pos')
    group.add_argument('--loss-weight-beta', type=float, default=0.999, metavar='B', help='of effective_num')
    group.add_argument('--loss-weight-max', type=float, metavar='W', help='largest weight by frequency')


def optimizer(group):
    group.add_argument('--opt', default='sgd', metavar='NAME', help='any of timm')
    group.add_argument('--opt-eps', type=float, metavar='EPS', help="epsilon (default: the optimizer's)")
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='BETA', help="betas (default: the optimizer's)")
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                       help='further arguments of create_optimizer_v2, filter_bias_and_bn=False among them')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M', help='momentum')
    group.add_argument('--weight-decay', type=float, default=2e-5, metavar='W', help='not of norms, biases')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='gradient clipping')
    group.add_argument('--clip-mode', default='norm', help='norm, value or agc')
    group.add_argument('--layer-decay', type=float, metavar='D', help='learning rate decay a layer')
    group.add_argument('--layer-decay-min-scale', type=float, default=0, metavar='S', help='its smallest scale')
    group.add_argument('--layer-decay-no-opt-scale', type=float, metavar='S', help='below this scale, do not train')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches an update')


def schedule(group):
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='passes over the data')
    group.add_argument('--start-epoch', type=int, metavar='N', help='(default: 0, or where the checkpoint ended)')
    group.add_argument('--stop-epoch', type=int, metavar='N',
                       help='stop after this many epochs, with the schedule of all of them')
    group.add_argument('--sched', default='cosine', metavar='NAME', help='any of timm')
    group.add_argument('--sched-on-updates', action='store_true', help='step with every update')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate; wins over --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='for --lr-base-size images an update')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='N', help='images an update')
    group.add_argument('--lr-base-scale', default='', metavar='SCALE', help='linear or sqrt (default: by optimizer)')
    group.add_argument('--lr-noise', type=float, nargs='+', metavar='PCT', help='epochs with noise, from and to')
    group.add_argument('--lr-noise-pct', type=float, default=0.67, metavar='PCT', help='its limit')
    group.add_argument('--lr-noise-std', type=float, default=1.0, metavar='STD', help='its standard deviation')
    group.add_argument('--lr-cycle-mul', type=float, default=1.0, metavar='M', help='length to the cycle before')
    group.add_argument('--lr-cycle-decay', type=float, default=0.5, metavar='D', help='height to the cycle before')
    group.add_argument('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles')
    group.add_argument('--lr-k-decay', type=float, default=1.0, metavar='K', help='k-decay of cosine and poly')
    group.add_argument('--lr-decay-fn', metavar='NAME', help='decay of wsd and rsqrt (default: 1-sqrt, linear)')
    group.add_argument('--lr-stable-timescale', type=float, metavar='N', help='epochs, for rsqrt')
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='learning rate at the start')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='epochs to the full learning rate')
    group.add_argument('--warmup-prefix', action='store_true', help='warm up before the schedule, not within')
    group.add_argument('--min-lr', type=float, default=0, metavar='LR', help='learning rate at the end')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at it after the schedule')
    group.add_argument('--patience-epochs', type=int, default=10, metavar='N', help='for plateau')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='EPOCH',
                       help='for multistep')
    group.add_argument('--decay-epochs', type=float, default=90, metavar='N', help='for step, wsd and rsqrt')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='factor of a step')


def run(group):
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--worker-seeding', default='all', help='all or part')
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between validations')
    group.add_argument('--recovery-interval', type=interval, default=0, metavar='N',
                       help='updates between recovery files, or seconds as in 600s')
    group.add_argument('--nan-policy', default='stop', choices=('stop', 'skip'),
                       help='at a loss or gradient that is not finite: end the run, or leave the update out')
    group.add_argument('--hang-timeout', type=float, default=1800., metavar='SECONDS',
                       help='end the run if nothing happens for so long, and say where it hangs; 0: never')
    group.add_argument('--early-stop', type=int, default=0, metavar='N',
                       help='end the run after N evaluations in a row without a better metric; 0: never')
    group.add_argument('--early-stop-metric', metavar='NAME', help='which one (default: --eval-metric)')
    group.add_argument('--early-stop-min-delta', type=float, default=0., metavar='D',
                       help='better by more than this; top-1 is in percent')
    group.add_argument('--dry-run', action='store_true',
                       help='only build all, train and evaluate for a few seconds, tell what the run would take, and '
                            'write nothing')
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    group.add_argument('--save-epochs', type=int, nargs='+', default=[], metavar='N',
                       help='keep milestone-N of these numbers of epochs for good')
    group.add_argument('--output', default='', metavar='DIR', help='(default: output/train)')
    group.add_argument('--experiment', default='', metavar='NAME', help="name of the run's folder")
    group.add_argument('--eval-metric', default='top1', metavar='NAME', help='selects the best checkpoint')
    group.add_argument('--save-images', action='store_true', help='at log intervals, a grid of views and their labels')
    group.add_argument('--report', action='store_true',
                       help='at the end, evaluate the best weights once more and write report.html')


def tracking(group):
    group.add_argument('--log-tensorboard', action='store_true',
                       help="rows of summary.csv and losses at log intervals, in the run's folder (needs tensorboard)")
    group.add_argument('--log-wandb', action='store_true', help='the same to Weights & Biases (needs wandb)')
    group.add_argument('--wandb-project', metavar='NAME', help='project')
    group.add_argument('--wandb-tags', nargs='+', default=[], metavar='TAG', help='tags')
    group.add_argument('--wandb-resume-id', default='', metavar='ID', help='run to go on with, together with --resume')


def hub(group):
    group.add_argument('--push-to-hub', default='', metavar='OWNER/NAME',
                       help='publish the best weights at the end of the run; token and name are checked before it')
    group.add_argument('--hub-private', action='store_true', help='in a private repository')
    group.add_argument('--hub-revision', default='', metavar='R', help='on this branch (default: main)')
    group.add_argument('--hub-pr', action='store_true', help='as a pull request')
    group.add_argument('--hub-replace-card', action='store_true',
                       help='write README.md anew, over what was changed there since it was published from here')
    group.add_argument('--hub-replace-files', action='store_true',
                       help='overwrite or delete other files of a model too that were not published from here')
    add_dataset_flag(group)
    add_license_flag(group)
