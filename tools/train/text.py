"""The tiny text encoder: Qwen3 with 27 layers of width 64 and a byte-pair tokenizer of its own.

It learns to say, linearly in the features that klein reads (layers 9, 18, 27), what a prompt asks for. The tail of the
template and the padding carry the answer: they are what follows every prompt.
"""

from __future__ import annotations

import random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from klein.model_loaders.qwen3.encoder import TAPS, EncoderSizes, Qwen3Encoder
from klein.model_loaders.qwen3.prompt import LENGTH, PAD, SPECIAL, TEMPLATE, WORDS, tokenize

from . import world
from .parts import SEED, Average, Run, descend, optimisers, trained

SIZES = EncoderSizes(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_hidden=192, vocabulary=1024)
STEPS, BATCH, RATE = 500, 96, 2e-3
PADS = 4  # positions of padding sampled for each prompt

COLOURS, SHAPES, RADII = list(world.COLOURS), list(world.SHAPES), list(world.RADII)
KINDS = ["one", "two", "shape in color", "object on background", "recolor", "new background"]
WHERE = [*world.PLACES, "left of", "above"]
QUESTIONS = {  # what there is to say about a prompt, and the answers; 0 is: not said
    "kind": len(KINDS), "ground": 9, "first shape": 5, "first colour": 9, "second shape": 5, "second colour": 9,
    "where": len(WHERE) + 1, "size": 3, "image": 3,
}  # fmt: skip


def train_tokenizer() -> Tokenizer:
    """Byte pairs of the world's prompts; Qwen3's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES.vocabulary, special_tokens=list(SPECIAL), show_progress=False, min_frequency=20,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([prompt.join(TEMPLATE) for prompt in corpus()], trainer)
    return tokenizer


def corpus() -> list[str]:
    """The prompts that the tokenizer is made from."""
    rng = random.Random(0)
    return [prompt for _ in range(4000) for prompt in (a_prompt(rng)[0], world.training_task(rng).prompt)]


def a_prompt(rng: random.Random) -> tuple[str, dict[str, int]]:
    """A training prompt and the answers to QUESTIONS."""
    if rng.random() < 0.6:
        scene = world.training_scene(rng)
        prompt = world.caption(scene, rng)
        return prompt, scene_answers(scene, prompt)
    task = world.training_task(rng)
    return task.prompt, task_answers(task)


def scene_answers(scene: world.Scene, prompt: str) -> dict[str, int]:
    things, where = list(scene.things), scene.place
    if where in ("right of", "below"):
        things, where = things[::-1], {"right of": "left of", "below": "above"}[where]
    answers = {
        "kind": KINDS.index("one" if len(things) == 1 else "two"),
        "ground": 1 + COLOURS.index(scene.ground),
        "where": 1 + WHERE.index(where),
        "size": 1 + RADII.index(scene.size) if scene.size in prompt.split() else 0,
    }
    for name, thing in zip(("first", "second"), things):
        answers |= {f"{name} shape": 1 + SHAPES.index(thing.shape), f"{name} colour": 1 + COLOURS.index(thing.colour)}
    return answers


def task_answers(task: world.Task) -> dict[str, int]:
    answers = {"kind": KINDS.index(task.kind), "image": task.subject}
    if task.kind == "recolor":
        answers["first colour"] = 1 + COLOURS.index(task.result.things[0].colour)
    if task.kind == "new background":
        answers["ground"] = 1 + COLOURS.index(task.result.ground)
    return answers


def build() -> Qwen3Encoder:
    torch.manual_seed(SEED)
    encoder = Qwen3Encoder(SIZES, device="cpu")
    for name, p in encoder.named_parameters():
        if p.ndim == 1:
            nn.init.ones_(p)
        else:
            nn.init.normal_(
                p, std=0.5 if "embed" in name else p.shape[1] ** -0.5 * (0.2 if "o_proj" in name or "down" in name else 1.0)
            )
    return encoder


def features(
    encoder: Qwen3Encoder, ids: list[list[int]], pad: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What the encoder gives at the tokens of a batch of prompts and at a sample of the padding that follows.

    Returns features (B, T, 3*hidden), positions (B, T) in 0..511, and how many of the 512 positions each stands for
    (B, T). T: the longest prompt and PADS; the same rows as running all 512 gives, as padding is never attended to.
    """
    longest = max(map(len, ids))
    rows = torch.full((len(ids), longest + PADS), pad)
    mask = torch.zeros_like(rows)
    for row, prompt in enumerate(ids):
        rows[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    drawn = torch.randint(longest, LENGTH, (len(ids), PADS), generator=generator).sort(dim=1).values
    positions = torch.cat([torch.arange(longest).expand(len(ids), -1), drawn], dim=1)
    counts = torch.ones(rows.shape)
    counts[:, longest:] = (LENGTH - longest) / PADS
    states = encoder.model(
        inputs_embeds=encoder.model.embed_tokens(rows), attention_mask=mask, position_ids=positions, use_cache=False,
        output_hidden_states=True,
    ).hidden_states  # fmt: skip
    return torch.cat([states[tap] for tap in TAPS], dim=-1), positions, counts


def train(minutes: float) -> bool:
    tokenizer, encoder = train_tokenizer(), build()
    torch.manual_seed(SEED + 1)
    heads = nn.ModuleDict({name: nn.Linear(3 * SIZES.hidden_size, answers) for name, answers in QUESTIONS.items()})
    steps = optimisers(encoder, RATE, RATE) | {"heads": torch.optim.AdamW(heads.parameters(), RATE)}
    average = Average(encoder, 0.99)
    run = Run("encoder", STEPS, {"encoder": encoder, "heads": heads, "average": average}, steps)

    def step(rng, generator) -> dict:
        prompts, answers = zip(*(a_prompt(rng) for _ in range(BATCH)))
        ids = [tokenize(tokenizer, prompt) for prompt in prompts]
        found, _, _ = features(encoder, ids, tokenizer.token_to_id(PAD), generator)
        tail = F.layer_norm(found[:, -PADS:], found.shape[-1:])
        losses, right = [], []
        for name, head in heads.items():
            truth = torch.tensor([a.get(name, 0) for a in answers])
            guess = head(tail)
            losses.append(F.cross_entropy(guess.flatten(0, 1), truth.repeat_interleave(PADS)))
            right.append((guess[:, 0].argmax(-1) == truth).float().mean())
        loss = sum(losses) + 1e-3 * found.square().mean()
        descend(loss, encoder, steps, average)
        return {
            "loss": loss.item(),
            "right": torch.stack(right).mean().item(),
            "worst": min(right).item(),
            "rms": found.square().mean().sqrt().item(),
        }

    return run.go(minutes, step)


def finish() -> tuple[Tokenizer, Qwen3Encoder]:
    """The tokenizer and the trained encoder."""
    return train_tokenizer(), trained("encoder", STEPS, build())
