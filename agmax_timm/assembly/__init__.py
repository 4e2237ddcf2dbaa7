"""From options to objects: device, model, data loaders, loss, optimizer, sharding."""
