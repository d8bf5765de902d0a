"""The Qwen3 encoder against transformers' whole Qwen3ForCausalLM with the same weights and diffusers' own prompt code.

Tolerance 1e-5 relative in float32; the layers are transformers' own, so what is seen is 0.
"""

import weakref

import pytest
import torch

from klein.model_loaders.qwen3.encoder import TAPS, load_encoder, read_encoder
from klein.model_loaders.qwen3.prompt import LENGTH, PAD, cut, load_tokenizer, tokenize, window
from tools import provision, small

BUNDLED = provision.comfyui() / "comfy/text_encoders/qwen25_tokenizer"
PROMPTS = {
    "empty": "",
    "one word": "cat",
    "600 tokens": "cat " * 600,
    "Chinese": "一只戴着红帽子的猫坐在窗边，阳光照在它的毛上。",
    "emoji": "🐈‍⬛ naïve café ½ e\u0301",
    "weights": "(word:1.3), ((x)), [y:z:0.5] {a|b}",
    "special tokens": "a<|im_end|>\n<|im_start|>assistant\n<think>b</think> <tool_response> <|endoftext|> <|meta|>",
    "whitespace": "  two  spaces\n\n\tand  lines \r\n ",
}


@pytest.fixture(scope="module")
def oracle():
    return small.encoder_oracle(**small.ENCODER)


@pytest.fixture(scope="module")
def oracle_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    return small.tokenizer_oracle(folder)


@pytest.fixture(scope="module")
def encoder(oracle, tmp_path_factory):
    return load_encoder(small.save(small.encoder_state(oracle), tmp_path_factory.mktemp("encoder") / "qwen_3_8b.safetensors"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED)


def ids_and_mask(tokenizer, *prompts):
    return window([tokenize(tokenizer, prompt) for prompt in prompts], tokenizer.token_to_id(PAD))


def test_golden_ids(tokenizer):
    ids, mask = ids_and_mask(tokenizer, "hi")
    golden = [151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert ids.shape == (1, 512)
    assert ids[0].tolist() == golden + [151643] * (512 - len(golden))
    assert mask[0].tolist() == [1] * len(golden) + [0] * (512 - len(golden))


@pytest.mark.parametrize("name", PROMPTS)
def test_tokens_are_those_of_transformers(tokenizer, oracle_tokenizer, name):
    text = oracle_tokenizer.apply_chat_template([{"role": "user", "content": PROMPTS[name]}], tokenize=False)
    want = oracle_tokenizer(text, padding="max_length", truncation=True, max_length=512, return_tensors="pt")
    ids, mask = ids_and_mask(tokenizer, PROMPTS[name])
    assert torch.equal(ids, want["input_ids"])
    assert torch.equal(mask, want["attention_mask"])


@pytest.mark.parametrize("name", PROMPTS)
@torch.no_grad()
def test_embeddings_are_those_of_the_whole_model_in_diffusers(encoder, tokenizer, oracle, oracle_tokenizer, name):
    from diffusers import Flux2KleinPipeline

    want = Flux2KleinPipeline._get_qwen3_prompt_embeds(oracle, oracle_tokenizer, PROMPTS[name])
    got = encoder(*ids_and_mask(tokenizer, PROMPTS[name]))
    assert got.shape == (1, 512, 3 * small.ENCODER["hidden"])
    assert ((got - want).norm() / want.norm()).item() < 1e-5


@torch.no_grad()
def test_a_batch_is_the_same_as_its_prompts_alone(encoder, tokenizer):
    ids, mask = ids_and_mask(tokenizer, "cat", PROMPTS["Chinese"])
    both = encoder(ids, mask)
    for row in range(2):
        alone = encoder(ids[row : row + 1], mask[row : row + 1])
        assert ((both[row] - alone[0]).norm() / alone.norm()).item() < 1e-5


@torch.no_grad()
def test_only_the_states_that_are_read_are_held_while_it_runs(encoder, tokenizer):
    states, held = [], []

    def watch(layer, inputs, output) -> None:
        states.append(weakref.ref(output))
        held.append(sum(state() is not None for state in states))

    hooks = [layer.register_forward_hook(watch) for layer in encoder.model.layers]
    encoder(*ids_and_mask(tokenizer, "cat"))
    for hook in hooks:
        hook.remove()
    assert len(states) == max(TAPS) and max(held) <= len(TAPS) + 1  # those, and a layer's input
    assert not any(layer._forward_hooks for layer in encoder.model.layers)


def test_only_the_layers_up_to_the_highest_tap_are_built_and_read(encoder, oracle, tmp_path):
    assert len(encoder.model.layers) == max(TAPS) == 27
    file = read_encoder(small.save(small.encoder_state(oracle), tmp_path / "qwen.safetensors"))
    assert not [name for name, _ in file.plan.tensors() if name.startswith("layers.27.") or name.startswith("norm")]
    assert "model.norm.weight" in file.plan.unused


def test_a_sharded_hugging_face_folder_loads_as_the_same_model(encoder, oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "text_encoder", max_shard_size="20MB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    want = encoder.state_dict()
    for path in (tmp_path, tmp_path / "text_encoder"):
        got = load_encoder(path).state_dict()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_tokenizer_file_that_cuts_and_pads_by_itself_gives_every_token_and_no_more(tokenizer, tmp_path):
    """As saved by transformers after a padded, truncated call: what is cut must be counted, so it may not be cut here."""
    own = load_tokenizer(BUNDLED)
    own.enable_truncation(100)
    own.enable_padding(length=700, pad_token=PAD)
    own.save(str(tmp_path / "tokenizer.json"))
    for prompt in ("cat", PROMPTS["600 tokens"]):
        assert tokenize(load_tokenizer(tmp_path), prompt) == tokenize(tokenizer, prompt)


@pytest.mark.parametrize(("tokens", "lost"), [(512, 0), (513, 1), (600, 88)])
def test_a_prompt_is_cut_at_512_and_what_is_lost_is_counted(tokens, lost):
    assert LENGTH == 512 and cut(tokens) == lost
    ids, mask = window([list(range(tokens))], pad=7)
    assert ids[0].tolist() == list(range(512)) and mask.sum() == 512


@pytest.mark.parametrize(
    ("hidden", "layers", "mlp", "tied", "kept", "whole"),
    [(4096, 36, 12288, False, 5_831_883_520, 8_190_735_360), (2560, 36, 9728, True, 3_114_088_192, 4_022_468_096)],
)
def test_full_size_parameters_kept(hidden, layers, mlp, tied, kept, whole):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from klein.model_loaders.qwen3.encoder import EncoderSizes, Qwen3Encoder

    encoder = Qwen3Encoder(EncoderSizes(hidden, 32, 8, 128, mlp, 151936), device="meta")
    assert sum(p.numel() for p in encoder.parameters()) == kept
    with torch.device("meta"):
        config = Qwen3Config(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
            intermediate_size=mlp, vocab_size=151936, tie_word_embeddings=tied,
        )  # fmt: skip
        assert sum(p.numel() for p in Qwen3ForCausalLM(config).parameters()) == whole


def test_the_rotary_frequencies_are_real_numbers_after_loading_from_meta(encoder):
    assert encoder.model.rotary_emb.inv_freq.device.type == "cpu"
    assert encoder.model.rotary_emb.inv_freq[0] == 1
