"""Invalid and hostile staged folders: how each is made, and the message that refuses it."""
import json
import os
import pickle
import struct

import torch
from safetensors.torch import load_file, save_file


class Payload:
    def __reduce__(self):
        return os.system, ('touch executed',)


def edit_config(folder, change):
    config = json.loads((folder / 'config.json').read_text())
    change(config)
    (folder / 'config.json').write_text(json.dumps(config))


def edit_weights(folder, change):
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors')


def write_header(folder, header, size=None):
    data = json.dumps(header).encode()
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', size or len(data)) + data + bytes(64))


def entry(offsets, shape=(4, 4)):
    return {'fc.weight': {'dtype': 'F32', 'shape': shape, 'data_offsets': offsets}}


HOSTILE = {
    'no weights': (lambda f: (f / 'model.safetensors').unlink(),
                   'holds no model.safetensors, as a staged folder does: export it again'),
    'no config': (lambda f: (f / 'config.json').unlink(),
                  'holds no config.json, as a staged folder does: export it again'),
    'pickle in place of weights': (
        lambda f: (f / 'model.safetensors').write_bytes(pickle.dumps(Payload())), "model.safetensors' is not sound"),
    'pickle beside no weights': (
        lambda f: ((f / 'model.safetensors').unlink(), (f / 'pytorch_model.bin').write_bytes(pickle.dumps(Payload()))),
        'holds no model.safetensors, as a staged folder does: export it again'),
    'header beyond the file': (lambda f: write_header(f, entry([0, 64]), size=2 ** 40), 'so export the folder again: '),
    'data beyond the file': (lambda f: write_header(f, entry([0, 6400], (40, 40))), 'so export the folder again: '),
    'shape that is not its size': (lambda f: write_header(f, entry([0, 64], (400, 400))), 'export the folder again: '),
    'truncated': (lambda f: (f / 'model.safetensors').write_bytes((f / 'model.safetensors').read_bytes()[:-9]),
                  'so export the folder again: '),
    'missing tensor': (lambda f: edit_weights(f, lambda t: t.pop('fc.bias')),
                       'does not fit config.json: missing fc.bias: export the folder again'),
    'tensor too many': (lambda f: edit_weights(f, lambda t: t.update(extra=torch.ones(2))),
                        'does not fit config.json: unexpected extra: export the folder again'),
    'other classes': (lambda f: edit_config(f, lambda c: c.update(num_classes=9)), 'fc.bias [3] in place of [9]'),
    'other architecture': (lambda f: edit_config(f, lambda c: c.update(architecture='test_vit')), 'config.json'),
    'unknown architecture': (lambda f: edit_config(f, lambda c: c.update(architecture='../../net')),
                             "timm has no architecture '../../net': update timm, or export the folder again"),
    'architecture of another kind': (lambda f: edit_config(f, lambda c: c.update(architecture=['x'])),
                                     "timm has no architecture ['x']: update timm, or export the folder again"),
    'file elsewhere': (lambda f: edit_config(f, lambda c: c['pretrained_cfg'].update(file='../../etc/weights.pth')),
                       "file' '../../etc/weights.pth' points to weights elsewhere"),
    'hub file elsewhere': (lambda f: edit_config(f, lambda c: c['pretrained_cfg'].update(
        hf_hub_filename='../../x.bin')), "hf_hub_filename' '../../x.bin' points to weights elsewhere"),
    'argument that is a path': (lambda f: edit_config(f, lambda c: c['model_args'].update(
        checkpoint_path='../../x.pth')), "model_args 'checkpoint_path' '../../x.pth' is a path"),
    'argument of no model': (lambda f: edit_config(f, lambda c: c['model_args'].update(exec='1')),
                             'timm cannot build its model'),
    'no JSON': (lambda f: (f / 'config.json').write_text('{'), '): export the folder again'),
    'deep JSON': (lambda f: (f / 'config.json').write_text('[' * 200_000), "config.json' is not JSON ("),
    'JSON of another kind': (lambda f: (f / 'config.json').write_text('[1]'),
                             'has no pretrained_cfg as timm writes it: export the folder again'),
    'link': (lambda f: ((f / 'summary.csv').unlink(), (f / 'summary.csv').symlink_to('/etc/hostname')), 'is a link'),
}
