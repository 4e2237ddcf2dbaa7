"""Small studies for tests."""
import csv

import yaml

from agmax_timm.study import command
from tests.helpers.run_files import status_of

SMALL = dict(model='test_resnet', num_classes=3, img_size=32, batch_size=4, epochs=1, workers=0, warmup_epochs=0)


def write_study(folder, **keys):
    content = dict(base=SMALL, methods={'baseline': {'smoothing': 0}, 'AgMax': {'agmax': True}}, seeds=[0, 1])
    content.update(keys)
    path = folder / 'study.yaml'
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def run_study(*argv):
    """The exit status of the command with these arguments."""
    return status_of(command.main, [*map(str, argv)])
