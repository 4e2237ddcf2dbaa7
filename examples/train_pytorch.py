"""Train with AgMax in plain PyTorch, as one process or with torchrun as several. Continues from its checkpoint."""
import argparse
import os

import timm
import torch
import torch.distributed as dist

from agmax_timm import AgMaxTask, create_dataset, create_two_view_loader

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--checkpoint', default='checkpoint.pth.tar')
args = parser.parse_args()

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
ranks, rank = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('LOCAL_RANK', 0))
if device.type == 'cuda':
    device = torch.device('cuda', rank)
    torch.cuda.set_device(device)
if ranks > 1:
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
torch.manual_seed(0)

mean, std = (0.286,) * 3, (0.353,) * 3
loader = create_two_view_loader(  # each rank gets a share of the images
    create_dataset('demo', split='train'), (3, 28, 28), batch_size=50 // ranks, num_workers=0, device=device,
    train_crop_mode='pad', color_jitter=None, mean=mean, std=std)
validation = timm.data.create_loader(
    create_dataset('demo', split='validation'), (3, 28, 28), batch_size=250, num_workers=0, device=device,
    crop_pct=1., mean=mean, std=std)

model = timm.create_model('test_resnet', num_classes=10).to(device)
task = AgMaxTask(model)
optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

first = 0
if os.path.exists(args.checkpoint):
    checkpoint = torch.load(args.checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(checkpoint['state_dict'])
    task.load_task_state(checkpoint['task_state'])
    optimizer.load_state_dict(checkpoint['optimizer'])
    schedule.load_state_dict(checkpoint['schedule'])
    first = checkpoint['epoch'] + 1
if ranks > 1:
    task.prepare_distributed(device_ids=[rank] if device.type == 'cuda' else None)

for epoch in range(first, args.epochs):
    model.train()
    for input, target in loader:
        loss = task(input, target)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

    model.eval()
    with torch.inference_mode():
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in validation)
    if rank == 0:
        print(f'epoch {epoch}: loss {loss.item():.3f}, accuracy {correct / 40:.2f} %')
        torch.save(dict(
            state_dict=model.state_dict(),  # timm.create_model('test_resnet', num_classes=10, checkpoint_path=...)
            task_state=task.get_task_state(),
            optimizer=optimizer.state_dict(),
            schedule=schedule.state_dict(),
            epoch=epoch,
        ), args.checkpoint)
if ranks > 1:
    dist.destroy_process_group()
