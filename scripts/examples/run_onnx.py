"""Run an exported network without pcea and torch: `pcea export modelnet40_eat_cpu --output model.onnx`, then this."""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
points = np.load(sys.argv[2]).astype(np.float32)  # (N, 3), y up
points -= points.mean(0)
points /= np.linalg.norm(points, axis=1).max()
[logits] = session.run(None, {"points": points[None]})
print(class_names[int(logits[0].argmax())])
