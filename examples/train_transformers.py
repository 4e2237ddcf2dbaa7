"""Train with AgMax in the Trainer of transformers, as one process or with torchrun as several. Resumes its run."""
import argparse
import os

import torch
from timm.data import create_transform
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from agmax_timm import AgMaxTask, create_dataset, create_two_view_loader

SIZE, NORMALISATION = (3, 28, 28), dict(mean=(0.286,) * 3, std=(0.353,) * 3)


class AgMaxTrainer(Trainer):
    """A Trainer of AgMaxTask(model). It trains with two views, evaluates the plain model, and saves the Q-network."""

    def get_train_dataloader(self):
        loader = create_two_view_loader(  # a DataLoader of all images, which Trainer shares among the ranks
            self.train_dataset, SIZE, self.args.train_batch_size, num_workers=self.args.dataloader_num_workers,
            use_prefetcher=False, distributed=False, train_crop_mode='pad', color_jitter=None, **NORMALISATION)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if model.training:
            return model(*inputs)['loss']
        return super().compute_loss(self.model.get_eval_model(), inputs, return_outputs, **kwargs)


def collate(samples):
    images, labels = zip(*samples)
    return dict(pixel_values=torch.stack(images), labels=torch.tensor(labels))


def accuracy(outputs):
    return dict(accuracy=100 * (outputs.predictions.argmax(1) == outputs.label_ids).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--folder', default='checkpoints')
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    settings = TrainingArguments(
        args.folder, num_train_epochs=args.epochs, save_strategy='epoch', logging_strategy='epoch', optim='sgd',
        optim_args='momentum=0.9,nesterov=True', learning_rate=0.1, weight_decay=5e-4, max_grad_norm=0,
        lr_scheduler_type='cosine', per_device_eval_batch_size=250, label_names=['labels'], report_to='none',
        use_cpu=not on_gpu,  # without it, several processes on a CPU do not know of each other
        dataloader_pin_memory=on_gpu, ddp_find_unused_parameters=False, disable_tqdm=True)
    settings.per_device_train_batch_size = 50 // settings.world_size
    set_seed(0)

    # With pretrained weights: TimmWrapperForImageClassification.from_pretrained(
    #     'timm/resnet18.a1_in1k', num_labels=10, ignore_mismatched_sizes=True)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture='test_resnet', num_labels=10))
    trainer = AgMaxTrainer(
        AgMaxTask(model), settings, collate, create_dataset('demo', split='train'),
        create_dataset('demo', split='validation', transform=create_transform(SIZE, crop_pct=1., **NORMALISATION)),
        compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.folder) if os.path.isdir(args.folder) else None)
    result = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"accuracy {result['eval_accuracy']:.2f} %")
        model.save_pretrained(f'{args.folder}/model')  # the plain model, for from_pretrained


if __name__ == '__main__':
    main()
