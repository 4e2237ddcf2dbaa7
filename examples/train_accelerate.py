"""Train with AgMax under Hugging Face accelerate, as one process or with torchrun as several."""
import argparse

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from agmax_timm import AgMaxTask, create_dataset, create_two_view_loader

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--epochs', type=int, default=10)
args = parser.parse_args()

# Without `cpu`, several processes on a CPU do not know of each other.
accelerator = Accelerator(cpu=not torch.cuda.is_available())
set_seed(0)

mean, std = (0.286,) * 3, (0.353,) * 3
loader = create_two_view_loader(  # a DataLoader of all images, which accelerate shares among the ranks
    create_dataset('demo', split='train'), (3, 28, 28), batch_size=50 // accelerator.num_processes, num_workers=0,
    use_prefetcher=False, distributed=False, train_crop_mode='pad', color_jitter=None, mean=mean, std=std)
validation = timm.data.create_loader(
    create_dataset('demo', split='validation'), (3, 28, 28), batch_size=250, num_workers=0, use_prefetcher=False,
    crop_pct=1., mean=mean, std=std)

task = AgMaxTask(timm.create_model('test_resnet', num_classes=10))
optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
task, optimizer, loader, validation = accelerator.prepare(task, optimizer, loader, validation)
model = accelerator.unwrap_model(task).get_eval_model()

for epoch in range(args.epochs):
    model.train()
    for input, target in loader:
        loss = task(input, target)['loss']
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in validation:
            # accelerate repeats images so that all ranks have equally many; gather_for_metrics leaves them out
            predicted, labels = accelerator.gather_for_metrics((model(images).argmax(1), labels))
            correct += int((predicted == labels).sum())
    accuracy = 100 * correct / len(validation.dataset)
    accelerator.print(f'epoch {epoch}: loss {loss.item():.3f}, accuracy {accuracy:.2f} %')
accelerator.end_training()
