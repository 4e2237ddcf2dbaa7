"""Train with AgMax in Lightning, as one process or, with --devices, as several."""
import argparse

import pytorch_lightning
import timm
import torch

from agmax_timm import AgMaxTask, create_dataset, create_two_view_loader


class AgMax(pytorch_lightning.LightningModule):
    """A classifier with AgMax in training. Checkpoints of Lightning have the Q-network too."""

    def __init__(self, model: torch.nn.Module, epochs: int):
        super().__init__()
        self.task = AgMaxTask(model)
        self.epochs = epochs

    def training_step(self, batch, _):
        result = self.task(*batch)
        self.log_dict({name: result[name] for name in ('ce', 'agreement', 'divergence')}, prog_bar=True)
        return result['loss']

    def validation_step(self, batch, _):
        images, labels = batch
        correct = self.task.get_eval_model()(images).argmax(1) == labels
        self.log('accuracy', 100 * correct.float().mean(), sync_dist=True, batch_size=len(labels), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.task.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--devices', type=int, default=1)
    args = parser.parse_args()
    pytorch_lightning.seed_everything(0)

    mean, std = (0.286,) * 3, (0.353,) * 3
    loader = create_two_view_loader(  # a DataLoader of all images, which Lightning shares among the ranks
        create_dataset('demo', split='train'), (3, 28, 28), batch_size=50 // args.devices, num_workers=0,
        use_prefetcher=False, distributed=False, train_crop_mode='pad', color_jitter=None, mean=mean, std=std)
    validation = timm.data.create_loader(
        create_dataset('demo', split='validation'), (3, 28, 28), batch_size=250, num_workers=0, use_prefetcher=False,
        crop_pct=1., mean=mean, std=std)
    trainer = pytorch_lightning.Trainer(
        max_epochs=args.epochs, devices=args.devices, strategy='ddp' if args.devices > 1 else 'auto', logger=False,
        enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(AgMax(timm.create_model('test_resnet', num_classes=10), args.epochs), loader, validation)
    if trainer.is_global_zero:
        print(f"accuracy {trainer.callback_metrics['accuracy']:.2f} %")


if __name__ == '__main__':
    main()
