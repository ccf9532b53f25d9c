"""Run an exported classifier without pcea and torch.

    pcea export modelnet40_pointea_files --output model.onnx
    python run_onnx.py model.onnx cloud.npy

It prints the most probable class, or that the network is unsure. `pcea predict` does more: it samples points on meshes,
estimates normals, and finds out which way is up.
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
class_names, about = json.loads(metadata["class_names"]), json.loads(metadata["preprocessing"])

cloud = np.load(sys.argv[2]).astype(np.float32)  # (N, 3), y up; (N, 6) with unit normals, if the network takes them
needed = 3 if about["features"] == "none" else 6
if cloud.shape[1] < needed or len(cloud) < about["min_points"]:
    sys.exit(f"The network takes at least {about['min_points']} points of {needed} columns, got {cloud.shape}.")
points = cloud[:, :3] - cloud[:, :3].mean(0)
points /= np.linalg.norm(points, axis=1).max()
inputs = {"points": points[None]}
if needed == 6:
    inputs["features"] = cloud[None, :, 3:6]
[[logits]] = session.run(None, inputs)
logits = logits / about["temperature"]
if about["background"]:  # the last logit is that of a cloud that is none of the classes, or not upright
    logits = logits[:-1] - logits[-1]

score = np.logaddexp.reduce(logits)  # how well the network knows the cloud
probabilities = np.exp(logits - score)
best = int(probabilities.argmax())
is_known = about["known_above"] is None or score >= about["known_above"]
print("" if is_known else "unsure, closest: ", class_names[best], f" {probabilities[best]:.1%}", sep="")
