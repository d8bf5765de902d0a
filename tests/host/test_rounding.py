"""A step in 16 bit against the same step in float32, all with the same weights and inputs, rounded to 16 bit before."""

import pytest
import torch

from tools import inprocess, small
from tools.small import relative

SIZES = dict(hidden=256, heads=2, context=192, mlp=768, depth=1, single=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_in_16_bit_a_step_is_no_further_from_float32_than_the_nearer_of_diffusers_and_the_hosts_class(dtype, tmp_path):
    """The mean of three sets of weights. Measured: bf16 0.992 of the host's class and 0.944 of diffusers,
    fp16 0.997 and 0.939."""
    ours, hosts, theirs = [], [], []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        state = {name: x.to(dtype) for name, x in small.flow_state(seed=seed, **SIZES).items()}
        wide = {name: x.float() for name, x in state.items()}
        x, text, reference = (
            torch.randn(shape, generator=generator).to(dtype) for shape in ((1, 128, 8, 8), (1, 64, 192), (1, 128, 4, 4))
        )
        t = torch.tensor([0.5])
        exact = inprocess.hosted_flow(small.save(wide, tmp_path / f"wide{seed}.safetensors"))
        want = exact(x.float(), t, text.float(), ref_latents=[reference.float()])

        flow = inprocess.hosted_flow(small.save(state, tmp_path / f"half{seed}.safetensors")).to(dtype)
        core = inprocess.host_flux(wide, SIZES["heads"], SIZES["context"]).to(dtype)
        oracle = small.flow_oracle(wide, SIZES["heads"]).to(dtype)
        ours.append(relative(flow(x, t, text, ref_latents=[reference]).float(), want))
        hosts.append(relative(core(x, t, text, ref_latents=[reference]).float(), want))
        theirs.append(relative(small.velocity(oracle, x, t.to(dtype), text, [reference]).float(), want))
    assert 0 < sum(ours) <= min(sum(hosts), sum(theirs)), (ours, hosts, theirs)
