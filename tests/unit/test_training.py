"""Training in parts."""

import json

import pytest
import torch

from tools.train import parts


def train(steps: int = 10, cut: int | None = None, inputs: tuple[str, ...] = ()) -> dict:
    """A small module's averaged weights; cut: the step at which the machine goes away."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    adam = {"adam": torch.optim.AdamW(module.parameters(), 0.1)}
    average = parts.Average(module, 0.9)
    run = parts.Run("module", steps, {"module": module, "average": average}, adam, inputs)

    def step(rng, generator) -> dict:
        if run.step == cut:
            raise KeyboardInterrupt
        loss = rng.random() * module(torch.randn(4, 3, generator=generator)).square().mean()
        parts.descend(loss, module, adam, average)
        return {"loss": loss.item()}

    run.go(1, step, every=4)
    return average.values


def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "WORK", tmp_path / "whole")
    whole = train()
    monkeypatch.setattr(parts, "WORK", tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(cut=6)
    again = train()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    module = parts.trained("module", 10, torch.nn.Linear(3, 2))
    assert torch.equal(module.weight, whole["weight"])


def test_what_is_not_trained_to_the_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "WORK", tmp_path)
    train(steps=5)
    with pytest.raises(RuntimeError, match="module is trained to step 5 of 10"):
        parts.trained("module", 10, torch.nn.Linear(3, 2))


def test_what_was_begun_on_other_models_or_from_another_seed_does_not_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "WORK", tmp_path)
    (tmp_path / "encoder.pt").write_bytes(b"one")
    train(inputs=("encoder",))
    train(inputs=("encoder",))
    (tmp_path / "encoder.pt").write_bytes(b"another")
    with pytest.raises(RuntimeError, match="begun from another seed or other models: delete it"):
        train(inputs=("encoder",))
    (tmp_path / "encoder.pt").write_bytes(b"one")
    monkeypatch.setattr(parts, "SEED", 1)
    with pytest.raises(RuntimeError, match="begun from another seed or other models: delete it"):
        train(inputs=("encoder",))


def test_the_model_card_states_every_figure_that_was_measured():
    card = (parts.ROOT / "tiny/README.md").read_text(encoding="utf-8")
    figures = json.loads((parts.ROOT / "tiny/figures.json").read_text())["judged right"]
    assert all(" | ".join(["", name, *map(str, row.values()), ""]).strip() in card for name, row in figures.items())
