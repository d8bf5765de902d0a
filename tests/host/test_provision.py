"""A host's own requirements are installed beside our build of torch, none lost and none that replaces it."""

import os
import subprocess

from tools import provision


def test_only_torch_and_its_companions_are_held_back():
    requirements = (
        "torch\ntorchsde\ntorchvision>=0.20\ntorchaudio\n\n#non essential:\nav>=16.0.0  # pictures\ntorch_geometric\n"
    )
    assert provision.beside_torch(requirements) == (["torchsde", "av>=16.0.0", "torch_geometric"], True)
    assert provision.beside_torch("torch==2.4\nnumpy") == (["numpy"], False)


def test_all_that_the_host_asks_for_can_be_imported_beside_this_torch():
    """torchaudio's library is linked against CUDA: present or not asked for, its import must not fail."""
    _, wants_audio = provision.beside_torch((provision.comfyui() / "requirements.txt").read_text())
    modules = ["torchvision.transforms", "torchsde"]
    if wants_audio and os.environ.get("COMFYUI_PATH"):  # 0.3.75 starts without it
        modules.append("torchaudio.functional")
    code = f"import torch, {', '.join(modules)}; print(torch.__version__)"
    ran = subprocess.run([provision.python(), "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("+")[0].strip() == provision.TORCH.split("==")[1]
