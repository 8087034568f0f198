"""A run holds one block of a model in memory, and as much as is counted from the shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quant.architectures import ARCHITECTURES
from quant.memory import memory_need

#: A Llama of equal matrices, so that a layer's Hessian is small beside a block, and most of the model is blocks.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
SAMPLES, LENGTH = 4, 128

#: Quantises the last block of a model, so that all others run, too, and prints by how many bytes that raised the
#: largest resident size above that of a process that has quantised a tiny model.
RUN = """
import sys
from pathlib import Path
import torch
from quant import LayerSettings, NMPattern
from quant.model_folder import ModelFolder
from quant.quantize_model import quantize_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))

torch.set_num_threads(1)
settings = LayerSettings(NMPattern(2, 4), 8)
samples, length = int(sys.argv[3]), int(sys.argv[4])
tokens = torch.arange(samples * length).reshape(samples, length) % 256
quantize_model(ModelFolder.open(sys.argv[1]), lambda name: settings, tokens[:, :8], Path("tiny"))
before = status("VmRSS")
folder = ModelFolder.open(sys.argv[2])
last = folder.architecture.block(folder.sizes.blocks - 1) + "."
quantize_model(folder, lambda name: settings if name.startswith(last) else None, tokens, Path("work"))
print(status("VmHWM") - before)
"""


def write_model(path: Path) -> int:
    """Write the model shard by shard; returns the bytes of its blocks."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    architecture = ARCHITECTURES["LlamaForCausalLM"]
    sizes = architecture.sizes(CONFIG)
    shards = {"model-0.safetensors": architecture.outer_tensors(sizes)}
    for block in range(sizes.blocks):
        tensors = architecture.block_tensors(sizes).items()
        shards[f"model-{block + 1}.safetensors"] = {f"{architecture.block(block)}.{name}": s for name, s in tensors}
    places = {}
    draws = torch.Generator().manual_seed(0)
    for shard, shapes in shards.items():
        save_file({name: torch.randn(shape, generator=draws) * 0.05 for name, shape in shapes.items()}, path / shard)
        places.update(dict.fromkeys(shapes, shard))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(file.stat().st_size for file in path.glob("model-[1-9]*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident sizes are read from Linux's /proc")
def test_a_run_holds_one_block(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    blocks = write_model(tmp_path / "model")
    arguments = [str(tiny_folders["llama"]), str(tmp_path / "model"), str(SAMPLES), str(LENGTH)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    taken = int(ran.stdout)
    architecture = ARCHITECTURES["LlamaForCausalLM"]
    counted = memory_need(architecture, architecture.sizes(CONFIG), SAMPLES, LENGTH, weight_bytes=4).peak
    # What an allocator wastes is not counted.
    bound = int(1.3 * counted) + 8_000_000
    assert bound < blocks / 2, "the bound would not tell one block from all of them"
    assert counted / 2 < taken < bound
    assert ran.stderr == ""


def test_a_7b_model_fits_24_gb() -> None:
    """Counted by hand: a block has 4·4096² + 3·4096·11008 weights and two norms, the largest Hessian 11008² numbers."""
    llama = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    architecture = ARCHITECTURES["LlamaForCausalLM"]
    need = memory_need(architecture, architecture.sizes(llama), samples=128, length=2048)
    assert need.block == 4 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) == 809_533_440
    assert need.statistics == 2 * 4 * 11008**2 == 969_408_512
    assert need.embedding == 2 * 2 * 32000 * 4096
    assert need.layer == 4 * (6 * 11008**2 + 21 * 4096 * 11008 // 4)
    assert need.peak == need.block + need.layer == 4_664_623_104
