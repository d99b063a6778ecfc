"""A recorder that writes records.json into the run directory. It has all that metrics.csv and TensorBoard have.

python main.py --config configs/quickstart.yml --plugin examples/json_recorder.py --tracker json
"""

import json

from utils.config.plugins import register_recorder
from utils.records.recorder import Recorder


@register_recorder("json")
class JsonRecorder(Recorder):
    """Recorder of a list of records, each with its epoch."""

    def start(self, run):
        self.path, self.epoch = run.path / "records.json", run.epoch
        earlier = json.loads(self.path.read_text()) if self.path.exists() else []
        self.records = [record for record in earlier if record["epoch"] <= run.epoch]  # the others come again

    def table(self, name, epoch, table):
        self.records.append({"epoch": epoch, "table": name, "rows": table.rows})

    def metrics(self, epoch, metrics):
        self.epoch = epoch
        self.records.append({"epoch": epoch, "metrics": metrics})

    def histograms(self, epoch, tensors):
        for name, tensor in tensors:
            self.records.append({"epoch": epoch, "tensor": name, "mean": tensor.mean().item()})

    def flush(self):
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.records))
        new.replace(self.path)

    def close(self, final):
        if final:
            self.records.append({"epoch": self.epoch, "final": final})
        self.flush()
