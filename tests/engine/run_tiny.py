"""A training run to be killed: python -m tests.engine.run_tiny DATA OUTPUT JSON-SETTINGS [resume]."""

import json
import sys
from pathlib import Path

import torch

from tests.engine.tiny import trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    resume = output / "last.pt" if "resume" in sys.argv else None
    trainer(data, output, resume=resume, **json.loads(sys.argv[3])).fit()
