"""Report by lines of JSON and keep checkpoints in a folder; any language could do the same."""

import json
import os
from pathlib import Path

rates = json.loads(Path(os.environ["TUNER_RATES"]).read_text())
steps = int(os.environ["TUNER_STEPS"])
saved = Path(os.environ["TUNER_CHECKPOINT_DIR"]) / "x.json"
first, x = json.loads(saved.read_text()) if saved.exists() else (0, 0.0)

for step in range(first, steps):
    print(json.dumps({"step": step, "train_loss": (x - 2) ** 2}))
    x -= rates[step] * 2 * (x - 2)
    print(json.dumps({"step": step + 1, "val_loss": (x - 2) ** 2}))
    saved.write_text(json.dumps([step + 1, x]))
    print(json.dumps({"step": step + 1, "checkpoint": True}))
