"""A recorder of one's own: records.json in the run directory has all that metrics.csv and TensorBoard have.

python main.py --config configs/quickstart.yml --plugin examples/json_recorder.py --tracker json
"""

import json
from typing import Any

import featherweight as fw


@fw.register_recorder("json")
class JsonRecorder(fw.Recorder):
    """Recorder of a list of records, each with its epoch."""

    def start(self, run: Any) -> None:
        self.path, self.epoch = run.path / "records.json", run.epoch
        earlier = json.loads(self.path.read_text()) if self.path.exists() else []
        self.records = [record for record in earlier if record["epoch"] <= run.epoch]  # the others come again

    def table(self, name: str, epoch: int, table: Any) -> None:
        self.records.append({"epoch": epoch, "table": name, "rows": table.rows})

    def metrics(self, epoch: int, metrics: Any) -> None:
        self.epoch = epoch
        self.records.append({"epoch": epoch, "metrics": metrics})

    def histograms(self, epoch: int, tensors: Any) -> None:
        self.records += [{"epoch": epoch, "tensor": name, "mean": tensor.mean().item()} for name, tensor in tensors]

    def flush(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.records))
        new.replace(self.path)

    def close(self, final: Any) -> None:
        self.records += [{"epoch": self.epoch, "final": final}] if final else []
        self.flush()
