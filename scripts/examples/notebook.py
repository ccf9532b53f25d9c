"""A trained network in a notebook: load, predict, look inside. Each block is a cell."""

# %% Load a network: a shipped name, a weights file, a checkpoint or the name of a configuration that you trained.
import numpy as np
import torch

import pcea
from pcea.datasets import Shapes

network = pcea.load()  # the classifier that comes with pcea
shapes = Shapes("test", num_shapes=12, num_points=2048, seed=0)
index = shapes.class_names.index("table")
# Points and normals, (2048, 6), y up. Points alone, (N, 3), or the path of a file will do as well.
table = torch.cat((shapes.points[index], shapes.normals[index]), dim=-1)

# %% Predict.
prediction = network.predict(table)
print(prediction)  # what `pcea predict` prints
best, probability = prediction.class_names[0], prediction.probabilities[0]  # the most probable class comes first

# %% Label the parts of a shape.
parts = pcea.load("labeled_psb_pointea").predict(table, category="Table")
part_label, confidence = parts.part_label, parts.confidence  # (2048,) each

# %% See what its points attend to: turn it, click a point. A page that needs no server, here and as a file.
network.visualize(table).save("table.html")
network.visualize(table)

# %% The same as a picture, an array (H, W, 3) uint8; needs Open3D's system libraries.
picture = network.draw(table, mode="slots")
assert isinstance(picture, np.ndarray)

# %% Go below: the torch module, and the weights of every attention layer.
points = table[None, :1024, :3]
with pcea.record_attention(network.network) as maps, torch.inference_mode():
    logits = network.network(points)  # (1, 40)
weights = {name: attention.weights for name, attention in maps.items()}  # each (1, centres, slots)
